# SPDX-License-Identifier: Apache-2.0
"""systemd, its journal and machined, over D-Bus and sd_notify."""
