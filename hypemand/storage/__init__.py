# SPDX-License-Identifier: Apache-2.0
"""Images, disks and config disks."""
