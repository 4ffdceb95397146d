# SPDX-License-Identifier: Apache-2.0
"""Test hosts: disposable Debian systems with their own systemd, journald, D-Bus and network."""
