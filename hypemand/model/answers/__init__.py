# SPDX-License-Identifier: Apache-2.0
"""What the API answers, as values: a class for a schema of openapi.yaml, a field for each of its keys.

The API encodes them and the command line decodes them, both with `hypemand.model.document`, so that each key
stands here alone. For daemons of other versions fields have defaults, and closed sets of words are open.
"""
