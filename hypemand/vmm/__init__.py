# SPDX-License-Identifier: Apache-2.0
"""The VMM: its command line, QMP, accelerator."""
