#!/bin/sh
# Every source file is named by its meson.build: a test that nobody builds proves nothing.
#   listing.sh SOURCE_ROOT | --self-test
set -eu

check() {
  root=$1
  missing=0
  for file in $(find "$root" -name '*.cpp' -not -path "$root/build*" -not -path '*/.*' | sort); do
    name=$(basename "$file" .cpp)
    # Lists name a file by its stem: `kernel` for kernel_test.cpp, `gemm` for bench_gemm.cpp, `avx2` for kernels_avx2.cpp.
    top=${file#"$root"/}
    top=$root/${top%%/*}
    listed=0
    if find "$top" -name meson.build -exec cat {} + |
      grep -cE "(^|[^A-Za-z0-9_])($name|${name%_test}|${name#*_})(\\.cpp)?'" >/dev/null; then
      listed=1
    fi
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
