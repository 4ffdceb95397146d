# SPDX-License-Identifier: Apache-2.0
"""The channel to the agent in a guest."""
