#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After removal. dpkg keeps configuration until "purge"; rpm keeps what the user wrote.
set -e
case "${1-}" in
  purge) rm -rf /etc/tapgate /var/lib/tapgate /var/log/tapgate ;;
  0) rm -rf /var/lib/tapgate ;;
  remove | upgrade | failed-upgrade | abort-* | disappear | [1-9]*) ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
