# SPDX-License-Identifier: Apache-2.0
"""The networks of VMs: addresses, ports, names, and who has which place."""
