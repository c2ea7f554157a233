#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the C into the committed objects and Go types ("go generate").
#   scripts/generate.sh          writes them
#   scripts/generate.sh --check  compiles a copy and fails where the committed ones differ
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin"

# Another clang makes other objects; with one version "up to date" can be checked.
if ! clang-19 --version 2>/dev/null | grep -q 'clang version 19\.'; then
  echo "generate: needs clang-19, which makes the committed objects; found: $(
    clang-19 --version 2>/dev/null | head -1 || clang --version 2>/dev/null | head -1 || echo none
  ). Install it with scripts/deps.sh" >&2
  exit 1
fi
# asm/types.h stands in the architecture's own folder.
C_INCLUDE_PATH="/usr/include/$(uname -m)-linux-gnu"
export C_INCLUDE_PATH

case "${1-}" in
  "")
    go generate ./...
    ;;
  --check)
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -a go.mod go.sum bpf headers loader cmd test "$copy"
    find "$copy" -name '*_bpfel*' -delete
    (cd "$copy" && go generate ./...)
    stale=0
    while read -r file; do
      if ! cmp -s "$file" "$copy/$file"; then
        echo "generate: $file is not what the C makes: run scripts/generate.sh and commit" >&2
        stale=1
      fi
    done < <({ find . -name '*_bpfel*'; cd "$copy" && find . -name '*_bpfel*'; } | sort -u)
    exit "$stale"
    ;;
  *)
    echo "usage: scripts/generate.sh [--check]" >&2
    exit 2
    ;;
esac
