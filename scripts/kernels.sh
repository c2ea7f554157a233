#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the tests on the kernels of test/kernels/kernels.json; --help tells more.
# The work is done by test/kernels/cmd/matrix. It is built first and then takes
# the place of this script, so that a signal to the script's process reaches it.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin

cache=${TAPGATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tapgate}
mkdir -p "$cache"
CGO_ENABLED=0 go build -o "$cache/matrix" ./test/kernels/cmd/matrix
exec "$cache/matrix" "$@"
