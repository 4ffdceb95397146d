# SPDX-License-Identifier: Apache-2.0
"""The version of hypemand; debian/changelog has the same."""

VERSION = "0.1.0"
