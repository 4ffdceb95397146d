# SPDX-License-Identifier: Apache-2.0
"""Definitions of VMs and of the host: schema, sizes, names, errors with their place."""
