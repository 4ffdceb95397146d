# SPDX-License-Identifier: Apache-2.0
"""Host agent that runs micro VMs as systemd services."""
