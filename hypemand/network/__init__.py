# SPDX-License-Identifier: Apache-2.0
"""The host's networks: bridges, TAP devices, rules and limits, managed by a separate service."""
