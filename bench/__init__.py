# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on a disposable test host, with the built packages."""
