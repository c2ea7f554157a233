#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need from Debian's or Ubuntu's packages (bookworm and
# 24.04 or newer). Quick when all is there. tapgate itself needs none of it, only Go.
set -euo pipefail

wanted=(
  clang-19 llvm-19 clang-format-19 libbpf-dev linux-libc-dev bpftool # generate, lint, look
  shellcheck jq ca-certificates curl                                 # lint, count, Go modules, web
  iproute2 iputils-ping ethtool nftables iptables procps             # networks
  firewalld dbus-daemon                                              # a host's own firewall
  dnsmasq-base udhcpc                                                # a provider's DHCP and advertisements
  prometheus logrotate                                               # metrics, alert rules, logs
  tcpdump tshark tcpreplay iperf3 strace                             # traffic, captures
  openssh-server openssh-client tmux                                 # the SSH connection in use
  mmdebstrap rpm systemd                                             # packages, units
  qemu-system-x86 cpio zstd xz-utils kmod                            # kernels
)
# Ubuntu ships bpftool with its kernel's tools.
# shellcheck source=/dev/null
if . /etc/os-release && [ "${ID-}" = ubuntu ]; then
  wanted=("${wanted[@]/#bpftool/linux-tools-generic}")
fi

missing() {
  local state name
  for name in "${wanted[@]}"; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)
    [ "$state" = installed ] || echo "$name"
  done
}

mapfile -t packages < <(missing)
[ "${#packages[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "deps: needs root to install: apt-get install ${packages[*]}" >&2
  exit 1
fi
echo "deps: installing ${packages[*]}"

# Tests start servers of their own in namespaces; the machine shall get none.
# A policy that stands already is the machine's own and stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi

log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -q update && apt-get -q install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "deps: apt-get failed; the whole log: $log" >&2
  exit 1
fi
rm -f "$log"

# Not after the next boot either, where the package was not there before.
for package in openssh-server:ssh.service,ssh.socket firewalld:firewalld.service prometheus:prometheus.service; do
  if [[ " ${packages[*]} " == *" ${package%%:*} "* ]] && command -v systemctl >/dev/null; then
    IFS=, read -ra units <<<"${package#*:}"
    systemctl disable "${units[@]}" >/dev/null 2>&1 || true
  fi
done
