# SPDX-License-Identifier: Apache-2.0
"""When an image is pulled. Apart from the rest of a definition, for the command line loads little."""

from __future__ import annotations

from enum import StrEnum


class ImagePull(StrEnum):
    """When a start asks the registry for the image. The words are Docker's."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"
