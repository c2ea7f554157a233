#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After installation and upgrade, .deb and .rpm. Starts and enables nothing: the
# gateway needs its configuration first.
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  # Only where it runs already; traffic does not depend on it.
  systemctl try-restart tapgate-agent.service || true
fi
