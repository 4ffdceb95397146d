# SPDX-License-Identifier: Apache-2.0
"""What runs in a VM's unit beside the VMM. Works without the daemon and imports none of it."""
