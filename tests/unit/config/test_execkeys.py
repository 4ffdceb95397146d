# SPDX-License-Identifier: Apache-2.0
"""Keys of exec mode that Docker has too: how they may be written, what the guest is told, and what is said of
the rest."""

from __future__ import annotations

import json

import pytest

from hypemand.cli.keyoptions import read_keys
from hypemand.cli.parser import parse_command_line
from hypemand.config.capabilities import NAMES, derive_mask
from hypemand.config.source import parse_source
from hypemand.config.vmdef import (
    boot_settings_of,
    definition_to_json,
    parse_definition,
    parse_source_definition,
    settings_of,
)
from hypemand.errors import InvalidDefinition

ALL = 2**64 - 1
KEYS: dict[str, object] = {
    "init": True,
    "read_only": True,
    "stdin": True,
    "tty": True,
    "tmpfs": ["/tmp", "/run:size=64m,mode=0755,uid=5,exec", "/a.b/..c:ro,nr_inodes=10,size=50%"],
    "sysctls": {"net.core.somaxconn": "1024", "net/ipv4/conf/eth0.1/forwarding": "1"},
    "cap_add": ["NET_ADMIN"],
    "cap_drop": ["cap_chown"],
}


def test_each_key_is_a_record_for_the_guest() -> None:
    made = parse_definition("web", {"image": "x", **KEYS})
    assert boot_settings_of(made) == (
        ("init", "1"),
        ("read_only", "1"),
        ("stdin", "1"),
        ("tty", "1"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run:size=64m,mode=0755,uid=5,exec"),
        ("tmpfs", "/a.b/..c:ro,nr_inodes=10,size=50%"),
        ("sysctl", "net.core.somaxconn=1024"),
        ("sysctl", "net/ipv4/conf/eth0.1/forwarding=1"),
    )
    assert settings_of(made) == (("capabilities", f"{ALL - 1:x}"),)
    assert parse_definition("web", definition_to_json(made)) == made
    plain = parse_definition("web", {"image": "x"})
    assert boot_settings_of(plain) == settings_of(plain) == ()
    assert "init" not in definition_to_json(plain)
    assert boot_settings_of(parse_definition("web", {"image": "x", "init": False})) == (("init", "0"),)


@pytest.mark.parametrize(
    ("added", "dropped", "mask"),
    [
        ((), (), None),
        (("NET_ADMIN",), (), None),
        ((), ("CHOWN", "cap_kill"), ALL & ~0b100001),
        ((), ("ALL",), 0),
        (("CHOWN", "CAP_CHECKPOINT_RESTORE"), ("all",), 1 | 1 << 40),
        (("CHOWN",), ("CHOWN", "KILL"), ALL & ~0b100000),
        (("ALL",), ("KILL",), ALL & ~0b100000),
        (("ALL",), ("ALL",), None),
    ],
)
def test_what_is_added_comes_after_what_is_dropped(
    added: tuple[str, ...], dropped: tuple[str, ...], mask: int | None
) -> None:
    assert derive_mask(added, dropped) == mask


def test_capabilities_have_the_kernels_numbers() -> None:
    """linux/capability.h"""
    numbers = {"CHOWN": 0, "SETPCAP": 8, "NET_RAW": 13, "SYS_ADMIN": 21, "MKNOD": 27, "SYSLOG": 34, "BPF": 39}
    assert {name: NAMES.index(name) for name in numbers} == numbers
    assert len(NAMES) == len(set(NAMES)) == 41


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("cap_drop: [NET_ADMI]", "cap_drop[0]: 'NET_ADMI' is not a capability; did you mean NET_ADMIN?"),
        ("cap_add: [1]", "cap_add[0]: is the number 1, not a capability; quote it"),
        ("tmpfs: [tmp]", "tmpfs[0]: 'tmp' is not valid; write PATH or PATH:OPTION,OPTION, such as /tmp:si"),
        ("tmpfs: [/tmp:bananas]", "tmpfs[0]: '/tmp:bananas' is not valid"),
        ("tmpfs: [/a/../b]", "tmpfs[0]: '/a/../b' is not valid"),
        ("tmpfs: ['/a/..:ro']", "tmpfs[0]: '/a/..:ro' is not valid"),
        ("tmpfs: [/a, '/a:ro']", "tmpfs[1]: /a is already used in tmpfs[0]; write each once"),
        ("tmpfs: [/dev/shm]", "tmpfs[0]: /dev/shm is hidden by a file system of the guest"),
        ("sysctls: {kernel: 1}", "sysctls.kernel: is not a valid key: 'kernel'; write the name of a kernel"),
        ("sysctls: {net..x: 1}", "sysctls.net..x: is not a valid key"),
        ('sysctls: {a.b: "1\\n2"}', "sysctls.a.b: '1\\n2' is not valid; write a value in one line"),
        ("sysctls: {a.b: true}", "sysctls.a.b: is true, not a string or a number"),
        ("{mode: systemd, read_only: true}", "read_only: has no effect in systemd mode; remove it, or"),
        ("{mode: systemd, tty: true}", "tty: has no effect in systemd mode; remove it, or"),
        (
            "{guest_agent: false, stdin: true}",
            "stdin: needs the guest agent, which passes on input",
        ),
        ("{guest_agent: false, tty: true}", "tty: needs the guest agent"),
        ("{mode: systemd, cap_drop: [ALL]}", "cap_drop: has no effect in systemd mode"),
        (
            "{tmpfs: [/a], volumes: [{volume: d, mount_path: /a}]}",
            "tmpfs[0]: /a is already used in volumes[0]",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_cure(written: str, said: str) -> None:
    mapping = written if written.startswith("{") else f"{{{written}}}"
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", parse_source(f"{mapping[:-1]}, image: x}}\n", "web.yaml"))
    (problem,) = caught.value.problems
    assert said in str(problem)


def test_keys_without_effect_do_no_harm_in_systemd_mode() -> None:
    keys = {"mode": "systemd", "read_only": False, "tmpfs": [], "init": False, "sysctls": {"a.b": 1}}
    assert boot_settings_of(parse_definition("web", {"image": "x", **keys}))[-1] == ("sysctl", "a.b=1")


def test_docker_has_the_same_options() -> None:
    words = [
        *("--init", "--read-only", "-it", "--tmpfs", "/tmp", "--tmpfs", "/run:size=64m", "--cap-drop", "ALL"),
        *("--cap-add", "CHOWN", "--sysctl", "net.core.somaxconn=1", "--sysctl", "vm.swappiness=0"),
    ]
    typed = read_keys(parse_command_line(["run", *words, "box"])[1])
    assert typed == {
        "init": True,
        "read_only": True,
        "stdin": True,
        "tty": True,
        "tmpfs": ["/tmp", "/run:size=64m"],
        "sysctls": {"net.core.somaxconn": "1", "vm.swappiness": "0"},
        "cap_add": ["CHOWN"],
        "cap_drop": ["ALL"],
    }
    parse_definition("web", json.loads(json.dumps({"image": "box", **typed})))
    assert read_keys(parse_command_line(["run", "--no-init", "box"])[1]) == {"init": False}
