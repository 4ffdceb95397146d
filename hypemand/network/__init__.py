# SPDX-License-Identifier: Apache-2.0
"""The host's networks: bridges, TAP devices, rules, limits, held by a service of its own."""
