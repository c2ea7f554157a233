#!/bin/bash
# What the tap costs: tapgate beside TEE, nft dup and tc mirred, in one run. And
# with --gate, what the gateway costs: tapgate's NAT beside the kernel's MASQUERADE.
#
#   scripts/bench.sh [--rounds N] [--json FILE] [--quick] [--markdown] [--profile] [MODE...]
#   scripts/bench.sh --gate [--loads LOAD,...] [--allow-slow] [the same flags] [MODE...]
#   TAPGATE=FILE scripts/bench.sh ...      measures a binary that is built already
#   scripts/bench.sh --help      lists modes, tests and all flags
#
# Needs root, Linux 6.6 (the counting programs use TCX), go, iperf3, nft,
# iptables, tc and ethtool. Everything happens in network namespaces, which
# this script keeps in a mount namespace of its own: whatever way it ends, the
# kernel removes them.
#
# The loads of a million flows take most of the time and some 3 GB of memory. One
# network namespace holds nf_conntrack_max flows, which is the whole machine's and
# is left alone: where that is too little, several gateways share the million.
#
# A figure of the fast path counts only if the gateway's own counters say that the
# packets took it (--allow-slow prints it all the same), one of new flows only if
# all of them stand in the table, one of a tap only if each packet was copied once.
# The least that says whether a change of the fast path is one for the better:
#   scripts/bench.sh --gate --quick --loads flows-1k,both-1k \
#     --modes masquerade-tee,tapgate-fast,tapgate-fast-tap
#
# Ratios hold from run to run, absolute figures do not: test/bench/README.md has what
# --markdown printed, and what it means. Where the time goes:
#   scripts/bench.sh --quick --profile tapgate tapgate-raw
# runs a pass more with the kernel's BPF statistics on (asked for by a file
# descriptor, since the sysctl kernel.bpf_stats_enabled is the whole machine's)
# and prints ns per run of each program; with --gate and perf installed also ns
# of each function. With hardware counters, and a long run
# (--rounds 50) in another terminal:
#   bpftool prog show name tapgate_tap_in
#   bpftool prog profile id ID duration 5 cycles instructions l1d_loads llc_misses
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin

missing=()
for tool in go iperf3 nft iptables tc ip ethtool unshare sysctl; do
	command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
	echo "bench.sh: missing: ${missing[*]} (scripts/deps.sh installs them)" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "bench.sh: needs root, for network namespaces and BPF" >&2
	exit 1
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/tapgate-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT

(cd "$here" && go build -o "$dir/bench" ./test/bench)
tapgate=${TAPGATE:-$dir/tapgate} # one that is built already, or this tree's
[[ -n ${TAPGATE:-} ]] || (cd "$here" && go build -o "$tapgate" ./cmd/tapgate)

mkdir -p /run/netns
# The inner shell has to expand the arguments, not this one.
# shellcheck disable=SC2016
unshare --mount bash -c 'mount -t tmpfs tapgate-bench /run/netns && exec "$@"' bench \
	env TMPDIR="$dir" "$dir/bench" --tapgate "$tapgate" "$@" &
child=$!
# Heard at once, and passed on, also when only this script is told.
trap 'kill "$child" 2>/dev/null || true; wait "$child" || true; exit 130' INT TERM HUP
wait "$child"
