#!/bin/sh
# Functions compiled with wide instructions must not be merged with those of shared code: the linker keeps one copy of
# an inline function, and a processor without the instructions would run it. So every symbol that the library of an
# instruction set defines for others must carry that set's name.
#   isa_leaks.sh LIBRARY...      libgradgram_<isa>.a
#   isa_leaks.sh --self-test COMPILER...
set -eu

check() {
  leaked=0
  for library in "$@"; do
    isa=$(basename "$library" .a)
    isa=${isa#libgradgram_}
    # Defined (not U) and visible to others (upper case, and the weak and unique kinds). Helpers that the compiler adds
    # for its own use start with two underscores or hold a dot.
    symbols=$(nm "$library" 2>/dev/null | awk 'NF == 3 && $2 ~ /^[A-TV-Zvwu]$/ { print $3 }' | sort -u)
    [ -n "$symbols" ] || { echo "no symbols in $library"; leaked=1; continue; }
    bad=$(printf '%s\n' "$symbols" | grep -v "$isa" | grep -v '^__x86\.' || true)
    if [ -n "$bad" ]; then
      echo "$library defines for everybody:"
      printf '%s\n' "$bad" | c++filt | sed 's/^/  /'
      leaked=1
    fi
  done
  return $leaked
}

if [ "$1" = --self-test ]; then
  shift
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  echo 'namespace avx2 { inline int f(int i) { return i + 1; } int (*keep)(int) = f; }' >"$scratch/good.cpp"
  echo 'inline int f(int i) { return i + 1; } namespace avx2 { int (*keep)(int) = f; }' >"$scratch/bad.cpp"
  for name in good bad; do
    mkdir "$scratch/$name"
    "$@" -c "$scratch/$name.cpp" -o "$scratch/$name.o"
    ar rc "$scratch/$name/libgradgram_avx2.a" "$scratch/$name.o"
  done
  check "$scratch/good/libgradgram_avx2.a" || { echo "a clean library was refused"; exit 1; }
  if check "$scratch/bad/libgradgram_avx2.a" >/dev/null; then
    echo "a leaking inline function was not caught"
    exit 1
  fi
  exit 0
fi
check "$@"
