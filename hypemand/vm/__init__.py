# SPDX-License-Identifier: Apache-2.0
"""One VM: its operations, its evidence and state, its runs."""
