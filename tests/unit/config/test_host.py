# SPDX-License-Identifier: Apache-2.0
"""The host config: defaults, drop-ins, and all problems of all files at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hypemand.config.definition import GIB, MIB, DefinitionDefaults
from hypemand.config.host import Accel, HostConfig, MemoryPolicy, load_host_config
from hypemand.config.listen import ListenConfig
from hypemand.config.pools import PoolConfig
from hypemand.errors import InvalidDefinition

# There is no such file: the network `default` has no IPv6 then, as that of HostConfig() has not.
NO_ID = Path("/nowhere/machine-id")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_host_config(tmp_path / "none", [tmp_path / "none.d"], NO_ID) == HostConfig()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_host_config(write(tmp_path / "h.yaml", "# nothing\n"), [], NO_ID) == HostConfig()


def test_every_key_is_carried_over(tmp_path: Path) -> None:
    text = """\
accel: tcg
qemu: /opt/qemu
kernel_dir: /k
guest_dir: /g
image_dirs: [/a, /b]
state_dir: /s
runtime_dir: /r
vm_dir: /v
uid_range: [70000, 70099]
memory: {overcommit: 2, reserve: 1G, page_cache: 2G}
defaults: {memory: 512M, vcpus: 1, disk: 1G, boot_timeout: infinity, stop_timeout: 5s, network: none}
listen: {address: "192.0.2.1:7420", certificate: /c.pem, key: /k.pem}
"""
    assert load_host_config(write(tmp_path / "h.yaml", text), [], NO_ID) == HostConfig(
        accel=Accel.TCG,
        qemu=Path("/opt/qemu"),
        kernel_dir=Path("/k"),
        guest_dir=Path("/g"),
        image_dirs=(Path("/a"), Path("/b")),
        state_dir=Path("/s"),
        runtime_dir=Path("/r"),
        vm_dir=Path("/v"),
        uid_range=(70000, 70099),
        memory=MemoryPolicy(2.0, GIB, 2 * GIB),
        defaults=DefinitionDefaults(512 * MIB, 1, GIB, None, 5.0, None),
        listen=ListenConfig("192.0.2.1", 7420, Path("/c.pem"), Path("/k.pem")),
    )


def test_drop_ins_count_by_name_and_merge_key_by_key(tmp_path: Path) -> None:
    main = write(tmp_path / "h.yaml", "accel: kvm\nmemory: {overcommit: 2, reserve: 1G}\nimage_dirs: [/a]\n")
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    write(etc / "50-b.yaml", "accel: tcg\nmemory: {overcommit: 4}\n")
    write(usr / "10-a.yaml", "accel: auto\nimage_dirs: [/b]\n")
    write(etc / ".hidden.yaml", "accel: [")
    write(etc / "99-c.yaml.dpkg-old", "accel: [")
    config = load_host_config(main, [etc, usr], NO_ID)
    assert config.accel is Accel.TCG
    assert config.memory == MemoryPolicy(4.0, GIB)
    assert config.image_dirs == (Path("/b"),)


def test_a_drop_in_hides_its_name_in_later_directories(tmp_path: Path) -> None:
    etc, run, usr = tmp_path / "etc", tmp_path / "run", tmp_path / "usr"
    write(usr / "a.yaml", "accel: tcg\n")
    write(run / "a.yaml", "accel: kvm\n")
    assert load_host_config(tmp_path / "none", [etc, run, usr], NO_ID).accel is Accel.KVM
    etc.mkdir()
    (etc / "a.yaml").symlink_to(os.devnull)
    assert load_host_config(tmp_path / "none", [etc, run, usr], NO_ID).accel is Accel.AUTO


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    main = write(tmp_path / "a.yaml", "accel: kvmm\nmemory: {reserv: 1G}\n")
    dropin = write(tmp_path / "d" / "b.yaml", "uid_range: [9, 5]\n")
    other = write(tmp_path / "d" / "c.yaml", "uid_range: [9]\nmemory: {overcommit: 0, reserve: -1}\n")
    with pytest.raises(InvalidDefinition) as caught:
        load_host_config(main, [tmp_path / "d"], NO_ID)
    assert str(caught.value).splitlines() == [
        (
            f"{main}:1:8: accel: 'kvmm' is not one of the allowed values; write auto, kvm or tcg; "
            "did you mean kvm?"
        ),
        f"{main}:2:10: memory.reserv: is not known; did you mean reserve?",
        f"{dropin}:1:12: uid_range: begins at 9, after its end 5; write [first, last]",
        f"{other}:1:12: uid_range: has 1 items, fewer than 2; write a list, for example [61184, 65519]",
        f"{other}:2:22: memory.overcommit: 0 is too small; write 0.1 to 16",
        f"{other}:2:34: memory.reserve: '-1' is not a size; write 512M, 1.5G, 1GiB or a number of bytes",
    ]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").symlink_to("nowhere")
    with pytest.raises(InvalidDefinition, match="cannot be read"):
        load_host_config(tmp_path / "h.yaml", [], NO_ID)
    (tmp_path / "d").write_text("")
    with pytest.raises(InvalidDefinition, match="cannot be read: Not a directory"):
        load_host_config(tmp_path / "none", [tmp_path / "d"], NO_ID)


@pytest.mark.parametrize(
    ("listen", "config"),
    [
        ("{address: 127.0.0.1:7420}", ListenConfig("127.0.0.1", 7420)),
        ("{address: '[::1]:65535'}", ListenConfig("::1", 65535)),
        ("{address: 0.0.0.0:7420, allow_plain_http: true}", ListenConfig("0.0.0.0", 7420)),
        ("{}", None),
        ("{certificate: /c, key: /k}", None),
    ],
)
def test_where_to_listen(tmp_path: Path, listen: str, config: ListenConfig | None) -> None:
    found = load_host_config(write(tmp_path / "h.yaml", f"listen: {listen}\n"), [], NO_ID).listen
    assert found == config
    assert config is None or str(config) in listen


def test_metrics_without_a_token_are_for_this_host_alone(tmp_path: Path) -> None:
    def load(address: str) -> ListenConfig | None:
        text = f"metrics: {{listen: '{address}'}}\n"
        return load_host_config(write(tmp_path / "h.yaml", text), [], NO_ID).metrics

    assert load("127.0.0.1:9442") == ListenConfig("127.0.0.1", 9442)
    assert load("[::1]:9442") == ListenConfig("::1", 9442)
    assert load_host_config(write(tmp_path / "h.yaml", "metrics: {}\n"), [], NO_ID).metrics is None
    for address, problem in (
        ("0.0.0.0:9442", "1:19: metrics.listen: metrics are served without a token, and 0.0.0.0 is not"),
        ("192.0.2.1:9442", "is not loopback; write an address of 127.0.0.0/8 or ::1"),
        ("127.0.0.1:80", "'80' is not a valid port"),
        ("127.0.0.1", "is not an IP address with a port"),
    ):
        with pytest.raises(InvalidDefinition) as caught:
            load(address)
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("{address: localhost:7420}", "1:19: listen.address: "),
        ("{address: 127.0.0.1}", "listen.address: "),
        ("{address: ':7420'}", "is not an IP address with a port; write an IP address"),
        ("{address: '::1:7420'}", "an IPv6 address must be in brackets"),
        ("{address: '[127.0.0.1]:7420'}", "an IPv6 address must be in brackets"),
        ("{address: 127.0.0.1:443}", "'443' is not a valid port for the daemon"),
        ("{address: 127.0.0.1:65536}", "'65536' is not a valid port"),
        (
            "{address: 192.0.2.1:7420}",
            "1:9: listen: tokens could be read on their way to 192.0.2.1:7420; give",
        ),
        ("{address: 0.0.0.0:7420}", "tokens could be read"),
        ("{address: '[::]:7420', allow_plain_http: false}", "tokens could be read"),
        ("{address: 127.0.0.1:7420, key: /k}", "listen: has a key and no certificate; TLS needs both"),
        ("{address: 192.0.2.1:7420, certificate: /c}", "listen: has a certificate and no key"),
        ("{address: 127.0.0.1:7420, certificate: c, key: /k}", "listen.certificate: "),
        ("{adress: 127.0.0.1:7420}", "listen.adress: "),
    ],
)
def test_a_wrong_place_to_listen_is_told_with_its_place_and_the_cure(
    tmp_path: Path, listen: str, problem: str
) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        load_host_config(write(tmp_path / "h.yaml", f"listen: {listen}\n"), [], NO_ID)
    (found,) = caught.value.problems
    assert problem in str(found)


def test_what_does_not_go_together_may_stand_in_several_files(tmp_path: Path) -> None:
    main = write(tmp_path / "h.yaml", "listen: {address: 192.0.2.1:7420}\n")
    keys = write(tmp_path / "d/50-tls.yaml", "listen: {certificate: /c, key: /k}\n")
    assert load_host_config(main, [tmp_path / "d"], NO_ID).listen is not None
    keys.write_text("listen: {certificate: /c}\n")
    with pytest.raises(InvalidDefinition) as caught:
        load_host_config(main, [tmp_path / "d"], NO_ID)
    assert caught.value.problems[0].file == str(keys)


def test_pools_are_merged_by_name_and_key(tmp_path: Path) -> None:
    file = write(
        tmp_path / "h.yaml", "pools: {san: {directory: /srv/shared}, fast: {directory: /mnt/nvme}}\n"
    )
    write(tmp_path / "d/50-shared.yaml", "pools: {san: {shared: true}}\n")
    assert load_host_config(file, [tmp_path / "d"], NO_ID).pools == {
        "san": PoolConfig(Path("/srv/shared"), shared=True),
        "fast": PoolConfig(Path("/mnt/nvme")),
    }


def test_a_pool_of_devices_is_none_of_volumes(tmp_path: Path) -> None:
    file = write(
        tmp_path / "h.yaml", "pools: {lun: {devices: /dev/disk/by-id}, fast: {directory: /mnt/nvme}}\n"
    )
    config = load_host_config(file, [], NO_ID)
    assert config.pools == {"fast": PoolConfig(Path("/mnt/nvme"))}
    assert config.pools_of_devices == {"lun": Path("/dev/disk/by-id")}


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ("san: {shared: true}", "pools.san: has neither directory nor devices; write directory: /srv/san"),
        ("lun: {devices: /srv}", "pools.lun.devices: .* a directory below /dev"),
        ("lun: {devices: /dev/../srv}", "pools.lun.devices: .* a directory below /dev"),
        ("lun: {devices: /dev/mapper, shared: true}", "pools.lun.shared: cannot be combined with devices"),
        ("lun: {devices: /dev/a, directory: /srv}", "pools.lun.directory: cannot be combined with devices"),
        ("san: {directory: srv}", "pools.san.directory: .* an absolute path"),
        ("san: {directory: /srv/}", "pools.san.directory: .* an absolute path"),
        ("San: {directory: /srv}", "pools.San: .*the name of a pool"),
        ("san: {directory: /srv, owner: x}", "pools.san.owner: "),
        ("san: {directory: /srv, shared: maybe}", "pools.san.shared: "),
        ("san: {directory: /var/lib/hypemand/p}", "pools.san.directory: .*overlaps .* of state_dir"),
        ("a: {directory: /srv/x}, b: {directory: /srv}", "pools.b.directory: /srv overlaps /srv/x of pool a"),
        ("a: {directory: /srv}, b: {directory: /srv}", "pools.b.directory: /srv overlaps /srv of pool a"),
    ],
)
def test_what_is_no_pool_is_named_at_its_place(tmp_path: Path, pools: str, problem: str) -> None:
    file = write(tmp_path / "h.yaml", f"pools: {{{pools}}}\n")
    with pytest.raises(InvalidDefinition) as refused:
        load_host_config(file, [], NO_ID)
    (found,) = refused.value.problems
    assert re.match(rf"{file}:1:[0-9]+: {problem}", str(found)), found
