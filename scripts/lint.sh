#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Formats, vet, static checks and the rules of the layout. Changes nothing, and
# tells everything it finds before it fails.
# shellcheck disable=SC2317 # "check" calls the functions
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin"
shopt -s nullglob

bad=0
# check NAME COMMAND...: what the command prints is what is wrong.
check() {
  local name=$1 out rc=0
  shift
  out=$("$@" 2>&1) || rc=$?
  if [ -n "$out" ] || [ "$rc" -ne 0 ]; then
    printf 'lint: %s\n%s\n' "$name" "$out" >&2
    bad=1
  fi
}

# The exit code of grep says whether it found something; 2 is an error.
found() { grep "$@" || [ $? -eq 1 ]; }

# imports FOLDER MODULES: the layout says what a folder knows nothing of.
imports() { found -rnE --include='*.go' "^[[:space:]]*(import )?([A-Za-z_.]+ )?\"[^\"]*($2)[\"/]" "$1"; }

too_long() { awk 'FNR == 401 { print FILENAME ": over 400 lines; one topic each" }' "$@"; }

unlicensed() { found -L -E 'SPDX-License-Identifier: GPL-2.0(-only)? OR BSD-2-Clause' "$@"; }

c=(headers/*.h bpf/*.c)
check gofmt gofmt -l cmd loader test
check 'go vet' go vet ./...
check 'go vet for arm64' env GOARCH=arm64 CGO_ENABLED=0 go vet ./cmd/... ./loader/...
check staticcheck go tool staticcheck ./...
check clang-format clang-format-19 --dry-run -Werror "${c[@]}"
check 'C license' unlicensed "${c[@]}"
check 'length of headers' too_long "${c[@]}"
check shellcheck shellcheck -x .ci/run scripts/*.sh scripts/package/*.sh
check 'cmd knows nothing of netlink and bpf' imports cmd 'cilium/ebpf|vishvananda/netlink'
check 'loader knows nothing of the CLI and YAML' imports loader 'spf13/(cobra|pflag)|goccy/go-yaml'
exit "$bad"
