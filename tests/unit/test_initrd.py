# SPDX-License-Identifier: Apache-2.0
"""The initrd of guests, as QEMU has to have it."""

import pytest

from guest.tools.make_initrd import PAGE, Entry, format_archive


@pytest.mark.parametrize("size", [0, 1, 3000, PAGE, 3 * PAGE + 5])
def test_an_initrd_has_whole_pages(size: int) -> None:
    """Of another the last one overlaps QEMU's ACPI tables, and some do not boot."""
    archive = format_archive([Entry("init", 0o100755, b"x" * size)])
    assert len(archive) % PAGE == 0
    assert len(archive) >= size
