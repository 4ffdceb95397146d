# SPDX-License-Identifier: Apache-2.0
"""Keys of a definition that become files of the guest."""

from __future__ import annotations

from typing import Any

import pytest

from hypemand.config.definition import DirectoryMount, GuestFile, Secret, VolumeMount
from hypemand.config.guestfiles import find_host_paths
from hypemand.config.source import parse_source
from hypemand.config.vmdef import definition_to_json, parse_definition, parse_source_definition
from hypemand.errors import InvalidDefinition

KEYS: dict[str, Any] = {
    "image": "x",
    "env_file": ["/etc/a.env", "-/etc/b.env"],
    "files": [
        {"path": "/etc/app.conf", "content": "a = ö\n"},
        {"path": "/a b", "source": "/etc/c", "mode": "4755", "owner": "www-data:adm"},
    ],
    "secrets": [
        {"name": "key"},
        {"name": "tls.key", "source": "/etc/tls/key", "encrypted": True, "mode": "0440", "owner": "app"},
        {"name": "token", "encrypted_content": "AAEC\n AwQ=\n"},
    ],
    "volumes": [
        {"volume": "data", "mount_path": "/data"},
        {"device": "lun/scsi-36001-0.x", "mount_path": "/lun", "readonly": True},
        {"source": "/srv/www", "mount_path": "/www", "readonly": True},
        {"source": "/srv/more", "mount_path": "/more", "required": False},
    ],
}


def test_keys_are_values_and_the_same_again() -> None:
    made = parse_definition("web", KEYS)
    assert made.env_file == ("/etc/a.env", "-/etc/b.env")
    assert made.files == (
        GuestFile("/etc/app.conf", "a = ö\n"),
        GuestFile("/a b", None, "/etc/c", "4755", "www-data:adm"),
    )
    assert made.secrets == (
        Secret("key", "key"),
        Secret("tls.key", "/etc/tls/key", encrypted=True, mode="0440", owner="app"),
        Secret("token", "token", encrypted_content="AAEC\n AwQ=\n"),
    )
    assert made.volumes == (
        VolumeMount("data", "/data"),
        VolumeMount("lun/scsi-36001-0.x", "/lun", readonly=True, is_device=True),
    )
    assert made.directories == (
        DirectoryMount("/srv/www", "/www"),
        DirectoryMount("/srv/more", "/more", required=False),
    )
    assert parse_definition("web", definition_to_json(made)) == made
    assert list(find_host_paths(made)) == [
        *("env_file (/etc/a.env)", "env_file (/etc/b.env)", "files.source (/etc/c)"),
        *("volumes.source (/srv/www)", "volumes.source (/srv/more)", "volumes.device (lun/scsi-36001-0.x)"),
        *("secrets (key)", "secrets (tls.key)", "secrets (token)"),
    ]
    plain = parse_definition("web", {"image": "x", "files": KEYS["files"][:1]})
    assert list(find_host_paths(plain)) == []


MANY = ", ".join(f"{{volume: v{number}, mount_path: /v{number}}}" for number in range(15))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("env_file: /etc/x.env", "env_file: is the string '/etc/x.env', not a list; write a list"),
        ("env_file: [x.env]", "env_file[0]: 'x.env' is not valid; write an absolute path"),
        ("env_file: [/a/../b]", "env_file[0]: "),
        ("files: [{path: /a}]", "files[0].content: is missing; write content or source"),
        ("files: [{path: /a, content: x, source: /b}]", "files[0].source: cannot be combined with content"),
        ("files: [{path: a, content: x}]", "files[0].path: 'a' is not valid"),
        ("files: [{path: /a/../b, content: x}]", "files[0].path: "),
        ("files: [{path: /run/secrets/a, content: x}]", "files[0].path: /run/secrets/a is in a file system"),
        ("files: [{path: /proc/a, content: x}]", "files[0].path: /proc/a is in a file system"),
        ("files: [{path: /a, content: x, mode: 0644}]", "files[0].mode: is the number 644, not a string"),
        ('files: [{path: /a, content: x, mode: "999"}]', "files[0].mode: '999' is not valid; write octal"),
        ('files: [{path: /a, content: x, owner: "a:b:c"}]', "files[0].owner: "),
        ('files: [{path: /a, content: "\\ud800"}]', "files[0].content: has an unpaired surrogate"),
        (
            "files: [{path: /a, content: x}, {path: /a, content: y}]",
            "files[1].path: /a is already used in files[0]",
        ),
        ("secrets: [key]", "secrets[0]: is the string 'key', not a mapping"),
        ("secrets: [{name: a/b}]", "secrets[0].name: 'a/b' is not valid"),
        ("secrets: [{name: ..}]", "secrets[0].name: '..' is not valid"),
        ("secrets: [{name: a, content: x}]", "secrets[0].content: is not known; allowed keys"),
        ("secrets: [{name: a, source: 'a:b'}]", "secrets[0].source: 'a:b' is not valid"),
        ("secrets: [{name: a}, {name: a}]", "secrets[1].name: a is already used in secrets[0]"),
        (
            "secrets: [{name: a, encrypted_content: AAAA, source: /a}]",
            "secrets[0].source: cannot be combined with encrypted_content",
        ),
        ("secrets: [{name: a, encrypted_content: AAA}]", "secrets[0].encrypted_content: is not Base64"),
        ("volumes: [{mount_path: /a}]", "volumes[0].volume: is missing; write volume, source or device"),
        ("volumes: [{volume: a, source: /b, mount_path: /c}]", "volumes[0].source: cannot be combined"),
        ("volumes: [{volume: a, device: b/c, mount_path: /c}]", "volumes[0].device: cannot be combined"),
        ("volumes: [{device: sda, mount_path: /c}]", "volumes[0].device: 'sda' is not valid"),
        ("volumes: [{device: lun/../sda, mount_path: /c}]", "volumes[0].device: "),
        (
            "volumes: [{device: lun/a, mount_path: /c}, {device: lun/a, mount_path: /d}]",
            "volumes[1].device: lun/a is already used in volumes[0]",
        ),
        (
            "volumes: [{source: /b, mount_path: /c, readonly: false}]",
            "volumes[0].readonly: is false, but a source is always read-only",
        ),
        (
            "volumes: [{source: /b, mount_path: /c, overlay: true}]",
            "volumes[0].overlay: cannot be combined with source",
        ),
        ("volumes: [{source: /b%n, mount_path: /c}]", "volumes[0].source: "),
        ("volumes: [{source: /b, mount_path: /}]", "volumes[0].mount_path: is /, but a source is read-only"),
        ("volumes: [{volume: a, mount_path: /, readonly: true}]", "volumes[0].readonly: cannot be combined"),
        ("volumes: [{volume: a, mount_path: /, overlay: true}]", "volumes[0].overlay: cannot be combined"),
        ("volumes: [{volume: a, mount_path: /, required: false}]", "volumes[0].required: cannot be combined"),
        ("volumes: [{volume: a, mount_path: //}]", "volumes[0].mount_path: "),
        ("volumes: [{volume: a, mount_path: /}, {volume: b, mount_path: /}]", "volumes[1].mount_path: / is"),
        (
            "persistent: false\nvolumes: [{volume: a, mount_path: /}]",
            "persistent: is false, but the VM's own disk is that of volumes[0]",
        ),
        (
            f"volumes: [{MANY}]\nfiles: [{{path: /a, content: x}}]\nsecrets: [{{name: a}}]",
            "volumes: there are 17 disks beside the VM's own; files and secrets count as one each",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_cure(line: str, problem: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", parse_source(f"image: x\n{line}\n", "web.yaml"))
    told = [str(one).partition(": ")[2] for one in caught.value.problems]
    assert any(one.startswith(problem) for one in told), told


def test_the_vms_own_disk_is_none_of_the_disks_beside_it() -> None:
    own = "{volume: own, mount_path: /}"
    text = f"image: x\nvolumes: [{MANY}, {own}]\nfiles: [{{path: /a, content: x}}]\n"
    assert parse_source_definition("web", parse_source(text, "web.yaml")).root_volume is not None
