# SPDX-License-Identifier: Apache-2.0
"""Compression of saved memory as the API answers it."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.model.compression import CompressionAlgorithm, CompressionView


@dataclass(frozen=True, slots=True)
class SnapshotCompression:
    """How memory is compressed, or is to be."""

    enabled: bool = True
    algorithm: CompressionAlgorithm | str = CompressionAlgorithm.ZSTD
    level: int | None = None

    @classmethod
    def of(cls, view: CompressionView) -> SnapshotCompression | None:
        """None where it was not asked for."""
        wanted = view.wanted
        return None if wanted is None else cls(algorithm=wanted.algorithm, level=wanted.level)
