# SPDX-License-Identifier: Apache-2.0
"""What stands for the host in tests, and behaves like it; contract.py is played on the real systemd too."""
