#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Before removal and upgrade. dpkg says "remove" or "upgrade", rpm how many versions
# will be left. An upgrade leaves what is in the kernel as it is.
set -e
case "${1-}" in
  upgrade | failed-upgrade | deconfigure) exit 0 ;;
  [1-9]*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl disable --now tapgate-agent.service tapgate.service || true
fi
# Without the program nobody could take it out of the kernel. 3: there is nothing.
rc=0
/usr/sbin/tapgate detach || rc=$?
if [ "$rc" -ne 0 ] && [ "$rc" -ne 3 ]; then
  echo "tapgate: what is in force could not be taken away; it goes with the next boot" >&2
fi
exit 0
