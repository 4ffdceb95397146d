# SPDX-License-Identifier: Apache-2.0
"""What the journal and the report port tell of a boot."""
