# SPDX-License-Identifier: Apache-2.0
"""What host and guest say to each other, as docs/protocol.md describes it; guest/shared is the other side."""
