#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After installation and upgrade, .deb and .rpm. Starts and enables nothing: the
# gateway needs its configuration first.
set -e
# What is in force gets the programs of this version, without a gap. 3: there is nothing.
if [ -d /sys/fs/bpf/tapgate ]; then
  rc=0
  /usr/sbin/tapgate upgrade || rc=$?
  if [ "$rc" -ne 0 ] && [ "$rc" -ne 3 ]; then
    echo "tapgate: the programs of the version before stay in force, and traffic is not affected" >&2
  fi
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  # Only where it runs already; traffic does not depend on it. Behind the upgrade: the
  # agent of a version changes nothing where the programs are another one's.
  systemctl try-restart tapgate-agent.service || true
fi
