# SPDX-License-Identifier: Apache-2.0
"""Resources of the host that VMs share: memory, disk space, volumes."""
