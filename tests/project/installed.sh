#!/bin/sh
# A header that is installed includes only headers that are: who embeds the library has no others.
#   installed.sh SOURCE_ROOT | --self-test
set -eu

check() {
  root=$1
  # room/name.hpp, one a line, from the table of meson.build.
  installed=$(sed -n '/foreach room, headers/,/^  }/p' "$root/meson.build" | tr -d '\n ' |
    grep -oE "'[a-z/]+':\[[^]]*\]" | while IFS=: read -r room names; do
      room=$(echo "$room" | tr -d "'")
      echo "$names" | tr -d "[]'" | tr ',' '\n' | sed "/^$/d; s|.*|$room/&.hpp|"
    done)
  [ -n "$installed" ] || { echo "no table of installed headers in $root/meson.build"; return 1; }
  missing=0
  for header in $installed; do
    [ -f "$root/$header" ] || { echo "installed but not there: $header"; missing=1; continue; }
    for included in $(sed -n 's/^#include "\(.*\)"/\1/p' "$root/$header"); do
      if ! echo "$installed" | grep -qxF "$included"; then
        echo "$header includes $included, which is not installed"
        missing=1
      fi
    done
  done
  return $missing
}

if [ "$1" = --self-test ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  mkdir -p "$scratch/engine"
  printf "foreach room, headers : {\n    'engine': ['good',\n      'other'],\n  }\n" >"$scratch/meson.build"
  echo '#include "engine/other.hpp"' >"$scratch/engine/good.hpp"
  touch "$scratch/engine/other.hpp"
  check "$scratch" || { echo "a sound list was refused"; exit 1; }
  echo '#include "engine/hidden.hpp"' >"$scratch/engine/other.hpp"
  if check "$scratch" >/dev/null; then
    echo "an include that is not installed was not caught"
    exit 1
  fi
  exit 0
fi
check "$1"
