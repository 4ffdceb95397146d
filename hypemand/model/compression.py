# SPDX-License-Identifier: Apache-2.0
"""Compression of saved memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIN_LEVEL, MAX_LEVEL = 1, 19


class CompressionAlgorithm(StrEnum):
    """What compresses."""

    ZSTD = "zstd"


class CompressionState(StrEnum):
    """How far it is. NONE: not asked for, or given up since the memory was needed; ERROR: it has failed, and
    the memory is as it was."""

    NONE = "none"
    COMPRESSING = "compressing"
    COMPRESSED = "compressed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Compression:
    """How saved memory is compressed; `delay`: seconds before that begins."""

    level: int = MIN_LEVEL
    algorithm: CompressionAlgorithm = CompressionAlgorithm.ZSTD
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class CompressionView:
    """How saved memory is compressed, or is to be. `size`: bytes of the compressed file; `error`: why it has
    failed."""

    state: CompressionState = CompressionState.NONE
    wanted: Compression | None = None
    size: int | None = None
    error: str | None = None
