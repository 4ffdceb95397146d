# SPDX-License-Identifier: Apache-2.0
"""Values that API, command line, agent and manager share. Imports nothing of the daemon."""
