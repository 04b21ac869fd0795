#!/bin/sh
# Who may know whom: prints every #include that points upward and fails when there is one.
#   layers.sh SOURCE_ROOT        checks the tree
#   layers.sh --self-test        checks that a forbidden include is caught
set -eu

check() {
  root=$1
  found=0
  rule() { # room, then the rooms it may include
    room=$1
    shift
    allowed=$(printf '%s|' "$room" "$@" | sed 's/|$//')
    bad=$(grep -rnE '#include "(engine|datasets|models|ntk|cli|tests|bench|examples)/' "$root/$room" \
      --include='*.hpp' --include='*.cpp' 2>/dev/null | grep -vE "#include \"($allowed)/" || true)
    if [ -n "$bad" ]; then
      echo "$room may include only: $allowed"
      echo "$bad"
      found=1
    fi
  }
  rule engine
  rule datasets engine
  rule models engine
  rule ntk engine datasets models
  rule cli engine datasets models ntk
  rule examples engine datasets models ntk
  # Quoted includes of the tree name their room, so that installed and built headers are the same file.
  unnamed=$(grep -rnE '#include "[^/"]+"' "$root/engine" "$root/datasets" "$root/models" "$root/ntk" "$root/cli" \
    --include='*.hpp' --include='*.cpp' 2>/dev/null || true)
  if [ -n "$unnamed" ]; then
    echo "an include must name its room:"
    echo "$unnamed"
    found=1
  fi
  return $found
}

if [ "$1" = --self-test ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  mkdir -p "$scratch/engine" "$scratch/models"
  echo '#include "engine/tensor.hpp"' >"$scratch/models/good.cpp"
  check "$scratch" || { echo "a permitted include was refused"; exit 1; }
  echo '#include "models/model.hpp"' >"$scratch/engine/bad.cpp"
  if check "$scratch" >/dev/null; then
    echo "an upward include was not caught"
    exit 1
  fi
  exit 0
fi
check "$1"
