#!/bin/sh
# Every line of the README's C++ example stands in examples/readme.cpp, which is built and run.
#   readme.sh SOURCE_ROOT | --self-test
set -eu

check() { # README, program
  strip() { sed 's/^[[:space:]]*//' "$1"; }
  awk '/^```cpp$/ { on = 1; next } /^```$/ { on = 0 } on && NF' "$1" >"$scratch/block"
  [ -s "$scratch/block" ] || { echo "no C++ example in $1"; return 1; }
  strip "$scratch/block" >"$scratch/wanted"
  strip "$2" >"$scratch/have"
  if grep -vxFf "$scratch/have" "$scratch/wanted"; then
    echo "these lines of $1 are not in $2"
    return 1
  fi
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "$1" = --self-test ]; then
  printf '```cpp\nint a;\nint b;\n```\n' >"$scratch/readme"
  printf '  int b;\n  int a;\n' >"$scratch/good"
  printf 'int a;\n' >"$scratch/bad"
  check "$scratch/readme" "$scratch/good" || { echo "a true example was refused"; exit 1; }
  if check "$scratch/readme" "$scratch/bad" >/dev/null; then
    echo "a false example was not caught"
    exit 1
  fi
  exit 0
fi
check "$1/README.md" "$1/examples/readme.cpp"
