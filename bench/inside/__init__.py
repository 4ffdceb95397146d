# SPDX-License-Identifier: Apache-2.0
"""What runs inside the test host: needs nothing but Python and Debian's packages that hypemand needs too."""
