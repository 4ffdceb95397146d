# SPDX-License-Identifier: Apache-2.0
"""What happens, in which order."""
