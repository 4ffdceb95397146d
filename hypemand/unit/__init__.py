# SPDX-License-Identifier: Apache-2.0
"""Helpers in a VM's unit beside the VMM. They work without the daemon and import none of it."""
