# SPDX-License-Identifier: Apache-2.0
"""Metrics in Prometheus' text format: what is counted, read at a scrape, and written."""
