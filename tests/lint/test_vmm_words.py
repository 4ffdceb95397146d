# SPDX-License-Identifier: Apache-2.0
"""What is QEMU's stands in hypemand/vmm alone: its options, and QMP's commands, events and words.

The words are collected from that folder: one that is used there tomorrow is looked for elsewhere too. Prose,
as in messages and docstrings, may have them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.config.mode import Mode
from hypemand.vmm.accel import AccelKind
from hypemand.vmm.commandline import NetDevice, VmmFiles, VmmPlan, VolumeFile, qemu_arguments
from hypemand.vmm.qemu import RUN_STATES, STATE_EVENTS
from tests.lint.sources import TOP

VMM = TOP / "hypemand/vmm"
# Words that are in daily use elsewhere too: systemd's, or ours.
COMMON = frozenset(
    ("running", "paused", "shutdown", "suspended", "watchdog", "debug", "stop", "quit", "save", "cancelled",
     "completed", "failed", "none", "id", "capabilities", "status", "state", "device", "events",
     "reason", "uri", "-m", "-name", "value", "group", "size", "read", "write", "total", "bps", "iops",
     "pause", "poweroff")
)  # fmt: skip
# Of QMP, of which the driver uses few, and what stands in names of devices and drives.
PATTERN = re.compile(
    r"(?:query|blockdev|netdev|chardev|device|object|block|migrate)[-_](?:[a-z]+[-_])*[a-z]+"
    r"|human-monitor-command|qom-[a-z]+|system_[a-z]+|[A-Z]+(?:_[A-Z]+)*_(?:ERROR|CHANGE|CHANGED|PANICKED)"
    r"|(?:volume|disk)[0-9]|qmp(?:\.sock)?|microvm|virtio-[a-z-]+|virtserialport|qemu.*"
)
# Where a word that looks so is not QEMU's: by file.
OTHERS = {
    "hypemand/api/render.py": {"qemu-microvm"},  # what the API calls this kind of VM
    "hypemand/cli/completion.py": {"STOP"},  # a signal
}
_PLAN = VmmPlan(
    vm="web",
    vm_id="0" * 32,
    binary=Path("/q"),
    accel=AccelKind.TCG,
    memory=1,
    vcpus=1,
    tsc_khz=None,
    mode=Mode.EXEC,
    files=VmmFiles(
        kernel=Path("/k"),
        initrd=Path("/i"),
        config=Path("/c"),
        image=Path("/r"),
        disk=Path("/d"),
        volumes=(VolumeFile(Path("/v"), "v", readonly=False),),
    ),
    net=NetDevice("02:00:00:00:00:01"),
)


def find_literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings and bytes that are no docstrings, with their lines."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, str):
                yield node.lineno, node.value
            elif isinstance(node.value, bytes):
                yield node.lineno, node.value.decode("latin-1")


def find_commands(folder: Path) -> set[str]:
    """What is executed over QMP there."""
    calls = (
        node
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "execute"
    )
    first = [call.args[0] for call in calls if call.args]
    return {node.value for node in first if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def read_vocabulary() -> frozenset[str]:
    """All words that are QEMU's alone."""
    options = {word for word in qemu_arguments(_PLAN) if word.startswith("-")}
    sources = [(VMM / name).read_text() for name in ("qemu.py", "shutdown.py")]
    literals = {word for source in sources for _line, word in find_literals(ast.parse(source))}
    words = {word for word in literals if re.fullmatch(r"[\w-]{2,}", word)}
    return frozenset({*find_commands(VMM), *RUN_STATES, *STATE_EVENTS, *options, *words} - COMMON)


VOCABULARY = read_vocabulary()


def find_words(source: str) -> list[tuple[int, str]]:
    """Literals of a source that are QEMU's words, or JSON for QMP, and their lines."""
    return [
        (line, word)
        for line, word in find_literals(ast.parse(source))
        if word in VOCABULARY or PATTERN.fullmatch(word) or '"execute"' in word
    ]


def test_no_word_of_qemu_stands_outside_the_driver() -> None:
    sources = [path for path in (TOP / "hypemand").rglob("*.py") if VMM not in path.parents]
    found = [
        f"{name}:{line}: {word!r}"
        for name, path in sorted((str(path.relative_to(TOP)), path) for path in sources)
        for line, word in find_words(path.read_text())
        if word not in OTHERS.get(name, ())
    ]
    assert found == [], "ask the driver: hypemand/vmm/driver.py"
    assert len(sources) > 100


def test_the_words_of_the_driver_are_known() -> None:
    assert {"query-status", "cont", "getfd", "migrate", "qmp_capabilities"} <= VOCABULARY
    assert {
        "-device",
        "-chardev",
        "-sandbox",
        "SHUTDOWN",
        "STOP",
        "prelaunch",
        "postmigrate",
        "io-error",
    } <= VOCABULARY


@pytest.mark.parametrize(
    "line",
    [
        'await vmm.execute("query-status")',
        'if word == "prelaunch":\n    pass',
        'EVENTS = {"BLOCK_IO_ERROR"}',
        'ORDER = b\'{"execute": "cont"}\'',
        'ORDER = "cont"',
        'argv = ["-device", "x"]',
        'argv = f"virtio-{kind}"\nargv = "virtio-blk-device"',
        'path = runtime / "qmp.sock"',
        'drive = "volume0"',
        'execute("blockdev-add")',
        'execute("human-monitor-command")',
        'run(["qemu-img", "info"])',
        'reason = "guest-shutdown"',
    ],
)
def test_a_stray_word_is_found(line: str) -> None:
    assert find_words(line)


@pytest.mark.parametrize(
    "line",
    [
        '"""Send query-status."""',
        'raise ValueError("the VMM does not answer on its QMP socket")',
        'state = "running"',
        'unit.stop("stop")',
    ],
)
def test_prose_and_common_words_are_not(line: str) -> None:
    assert find_words(line) == []


def test_only_the_driver_speaks_qmp() -> None:
    """Who asks a VMM for something imports what the driver offers."""
    stray = re.compile(r"hypemand\.vmm(?:\.| import )(?:qmp|intake)\b")
    found = [
        str(path.relative_to(TOP))
        for path in (TOP / "hypemand").rglob("*.py")
        if VMM not in path.parents and stray.search(path.read_text())
    ]
    assert found == []
