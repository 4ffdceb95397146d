# SPDX-License-Identifier: Apache-2.0
"""Images for VMs and their pulls."""
