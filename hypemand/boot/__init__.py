# SPDX-License-Identifier: Apache-2.0
"""The progress of a boot, from the journal and the report port."""
