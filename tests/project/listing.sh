#!/bin/sh
# Every source file is named by its meson.build: a test that nobody builds proves nothing.
#   listing.sh SOURCE_ROOT | --self-test
set -eu

check() {
  root=$1
  missing=0
  for file in $(find "$root" -name '*.cpp' -not -path "$root/build*" -not -path '*/.*' | sort); do
    folder=$(dirname "$file")
    name=$(basename "$file" .cpp)
    stem=${name%_test}
    # The nearest meson.build at or above the file must mention it (tests are listed by their stem).
    listed=0
    while :; do
      if [ -f "$folder/meson.build" ] && grep -qE "(^|[^A-Za-z0-9_])($name|$stem)(\.cpp)?'" "$folder/meson.build"; then
        listed=1
        break
      fi
      [ "$folder" = "$root" ] && break
      folder=$(dirname "$folder")
    done
    if [ $listed = 0 ]; then
      echo "not built by any meson.build: ${file#"$root"/}"
      missing=1
    fi
  done
  return $missing
}

if [ "$1" = --self-test ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  mkdir -p "$scratch/tests"
  echo "tests = ['good']" >"$scratch/tests/meson.build"
  touch "$scratch/tests/good_test.cpp"
  check "$scratch" || { echo "a listed test was refused"; exit 1; }
  touch "$scratch/tests/forgotten_test.cpp"
  if check "$scratch" >/dev/null; then
    echo "an unlisted test was not caught"
    exit 1
  fi
  exit 0
fi
check "$1"
