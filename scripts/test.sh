#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole check of tapgate, here and in CI: installs what the tests need, lints,
# compares the generated code, runs every test on this kernel and the datapath
# set on each kernel of the list. Networks, mounts and programs are made in
# namespaces and folders of the tests' own.
#   scripts/test.sh [--no-kernels]
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin:/usr/sbin:/sbin" HOME="${HOME:-/root}"

kernels=yes
case "${1-}" in
  "") ;;
  --no-kernels) kernels=no ;;
  *) echo "usage: scripts/test.sh [--no-kernels]" >&2; exit 2 ;;
esac
if [ "$(id -u)" -ne 0 ]; then
  echo "test: needs root, for network namespaces and BPF" >&2
  exit 1
fi
command -v go >/dev/null || { echo "test: needs Go ($(grep '^go ' go.mod) or newer) in PATH or /usr/local/go/bin" >&2; exit 1; }

logs=$(mktemp -d)
stages_failed=0
stage() {
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  if "$@"; then
    echo "=== $name: ok, $((SECONDS - start)) s"
  else
    echo "=== $name: FAILED, $((SECONDS - start)) s"
    stages_failed=$((stages_failed + 1))
  fi
}

# What measures has the machine for itself, and what runs in the networks of a lab
# mostly waits: four at a time. Never cached: the kernel is not among the inputs.
all_packages() {
  local rc=0 quick
  quick=$(go list ./... | grep -vE '/test/(bench|e2e)$') || return
  # shellcheck disable=SC2086 # one word each
  go test -json -count=1 -p 2 -timeout 20m $quick || rc=1
  go test -json -count=1 -p 1 -parallel 4 -timeout 60m ./test/bench ./test/e2e || rc=1
  return "$rc"
}

go_tests() {
  local rc=0
  all_packages | tee "$logs/tests.json" |
    jq -Rr --unbuffered 'fromjson? | select(.Action == "output" and .Test == null) | .Output[:-1]
      | select(test("^(ok|FAIL|panic)\\s"))' || rc=$?
  # Then what the tests that failed or were skipped have said.
  jq -nRr '[inputs | fromjson?] as $all
    | [$all[] | select(.Action == "fail" or (.Action == "skip" and .Test)) | [.Package, .Test]] as $told
    | $all[] | select(.Action == "build-output" or
        (.Action == "output" and ([.Package, .Test] | IN($told[])))) | .Output[:-1]
    | select(startswith("=== ") | not)' "$logs/tests.json"
  return "$rc"
}

# The running kernel has had all tests by then.
other_kernels() {
  local names
  names=$(scripts/kernels.sh --list | jq -r '.[]') || return
  # shellcheck disable=SC2086 # one word each
  scripts/kernels.sh --json "$logs/kernels.json" $names
}

stage 'packages' scripts/deps.sh
stage 'lint' scripts/lint.sh
stage 'generated code' scripts/generate.sh --check
stage 'tests on this kernel' go_tests
if [ "$kernels" = yes ]; then
  stage 'other kernels' other_kernels
fi

touch "$logs/tests.json" "$logs/kernels.json"
line=$(jq -nRr --slurpfile kernels "$logs/kernels.json" --argjson stages "$stages_failed" \
  -f scripts/test-count.jq "$logs/tests.json")
if [ "$stages_failed" -gt 0 ]; then
  echo "test: full log of the tests: $logs/tests.json"
else
  rm -rf "$logs"
fi
echo "$line"
[[ $stages_failed -eq 0 && $line =~ ^[1-9][0-9]*\ passed,\ 0\ failed ]]
