# SPDX-License-Identifier: Apache-2.0
"""What each route takes as its JSON body or as its query, and the first frame of a WebSocket: one row for
each field. `hypemand.api.fields` reads them."""
