# SPDX-License-Identifier: Apache-2.0
"""The properties of a VM's transient unit."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

import hypemand.config
from hypemand.config.definition import Restart
from hypemand.systemd.extras import EXTRA_PROPERTIES, INFINITY, extra_properties
from hypemand.systemd.rootdir import Own, copy_linker_cache, is_in_usr, make_root, outside_usr
from hypemand.systemd.sandbox import sandbox_properties
from hypemand.systemd.units import UnitPlan, unit_properties
from hypemand.unitnames import unit_name, vm_of_unit

PLAN = UnitPlan(
    vm="web",
    vm_id="0" * 32,
    uid=61200,
    start=("/usr/lib/hypemand/launcher", "cost: $5"),
    stop=("/usr/bin/python3", "stop"),
    stop_post=("/usr/bin/python3", "exit"),
    root=Path("/run/hypemand/root"),
    readable=((Path("/boot/vmlinux"), Path("/kernel")),),
    writable=((Path("/run/hypemand/vms/web"), Path("/vm")),),
    memory_max=2**28,
    cpu_quota=1.5,
    tasks_max=33,
    boot_timeout=None,
    stop_timeout=30.0,
    restart=Restart.ON_FAILURE,
    restart_delay=(5.0, 300.0),
    start_limit=(5, 600.0),
    kvm=False,
    watchdog=False,
    extra=MappingProxyType({"After": ("a.service", "b.target"), "Nice": ("5",)}),
)


def test_a_units_name_leads_back_to_its_vm() -> None:
    assert vm_of_unit(unit_name("my-vm")) == "my-vm"
    assert vm_of_unit("ssh.service") is None


def test_limits_and_deadlines_are_systemds() -> None:
    properties = {name: value for name, _signature, value in unit_properties(PLAN)}
    assert properties["MemoryMax"] == 2**28
    assert properties["CPUQuotaPerSecUSec"] == 1_500_000
    assert properties["TimeoutStartUSec"] == INFINITY
    assert properties["TimeoutStopUSec"] == 30_000_000
    assert properties["Restart"] == "on-failure"
    assert properties["User"] == "61200"


def test_only_a_unit_that_needs_it_has_another_signal_of_its_watchdog() -> None:
    assert "WatchdogSignal" not in {name for name, _, _ in unit_properties(PLAN)}
    watched = unit_properties(replace(PLAN, watchdog=True))
    assert ("WatchdogSignal", "i", 23) in watched
    assert type(dict((name, value) for name, _, value in watched)["WatchdogSignal"]) is int  # noqa: C402


def test_the_vmm_sees_usr_and_its_own_and_writes_to_its_own_only() -> None:
    properties = {name: value for name, _signature, value in unit_properties(PLAN)}
    assert properties["RootDirectory"] == "/run/hypemand/root"
    readable = {(host, inside) for host, inside, *_ in properties["BindReadOnlyPaths"]}
    assert readable == {("/usr", "/usr"), ("/boot/vmlinux", "/kernel")}
    assert properties["InaccessiblePaths"] == ["+/sys", "+/dev/shm"]
    assert properties["BindPaths"] == [("/run/hypemand/vms/web", "/vm", False, 0)]
    assert properties["ReadWritePaths"] == ["+/vm"]
    assert properties["ProtectSystem"] == "strict"


def test_a_root_is_made_once_and_completed_and_the_host_has_its_mount_points_too(tmp_path: Path) -> None:
    root, own = tmp_path / "root", Own(tmp_path / "self")
    make_root(root, own)
    in_root = root / own.disk.relative_to("/")
    in_root.unlink()
    make_root(root, own)
    for path in (in_root, own.disk, own.image, own.kernel, own.initrd, own.tap, own.journal):
        assert path.read_bytes() == b""
    assert own.runtime.is_dir()
    assert (root / "bin").readlink() == Path("usr/bin")


def test_the_root_has_the_list_of_libraries_that_the_host_has_now(tmp_path: Path) -> None:
    source, root = tmp_path / "ld.so.cache", tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    copy = root / "etc/ld.so.cache"
    source.write_bytes(b"one")
    copy_linker_cache(root, source)
    assert copy.read_bytes() == b"one"
    assert copy.stat().st_mode & 0o777 == 0o444
    first = copy.stat().st_ino
    copy_linker_cache(root, source)
    assert copy.stat().st_ino == first, "nothing has changed, so nothing is to be written"
    source.write_bytes(b"two")
    os.utime(source, ns=(1, 1))
    copy_linker_cache(root, source)
    assert copy.read_bytes() == b"two"
    source.unlink()
    copy_linker_cache(root, source)
    assert not copy.exists()


def test_a_vmm_sees_what_is_on_the_mount_of_usr_and_no_link() -> None:
    binary = Path(sys.executable).resolve()
    assert is_in_usr(binary)
    for elsewhere in ("/proc/version", "/usr/no/such/file", "/bin/sh", "/usr/../etc/passwd"):
        assert not is_in_usr(Path(elsewhere))


def test_what_is_not_below_usr_is_bound_at_its_own_place() -> None:
    own = Path("/opt/qemu")
    assert outside_usr([Path("/usr/bin/qemu"), own]) == [(own, own)]


def test_a_guest_gives_its_lines_no_priority() -> None:
    properties = {name: value for name, _signature, value in unit_properties(PLAN)}
    assert properties["SyslogLevelPrefix"] is False


def test_a_dollar_in_a_command_is_no_variable() -> None:
    properties = {name: value for name, _signature, value in unit_properties(PLAN)}
    assert properties["ExecStart"] == [(PLAN.start[0], [PLAN.start[0], "cost: $$5"], False)]


def test_extra_properties_come_last_and_so_win() -> None:
    names = [name for name, *_ in unit_properties(PLAN)]
    assert names[-2:] == ["After", "Nice"]


@pytest.mark.parametrize(
    ("given", "interval", "burst"),
    [
        ({}, 1_000_000, 10_000_000),
        # what systemd does not pass on to journald
        ({"LogRateLimitIntervalSec": ("0",)}, 1_000_000, 10_000_000),
        ({"LogRateLimitIntervalSec": ("0",), "LogRateLimitBurst": ("5",)}, 1_000_000, 10_000_000),
        ({"LogRateLimitBurst": ("0",)}, 1_000_000, 10_000_000),
        ({"LogRateLimitIntervalSec": ("5s",)}, 5_000_000, 10_000),
        ({"LogRateLimitBurst": ("70",)}, 30_000_000, 70),
        ({"LogRateLimitBurst": ("70",), "LogRateLimitIntervalSec": ("2min",)}, 120_000_000, 70),
        ({"LogRateLimitIntervalSec": ("infinity",)}, INFINITY, 10_000),
    ],
)
def test_journald_limits_lines_only_where_the_definition_does(
    given: dict[str, tuple[str, ...]], interval: int, burst: int
) -> None:
    properties = unit_properties(replace(PLAN, extra=given))
    limits = [(name, value) for name, _, value in properties if name.startswith("LogRateLimit")]
    assert sorted(limits) == [("LogRateLimitBurst", burst), ("LogRateLimitIntervalUSec", interval)]


def test_dev_kvm_is_there_only_with_kvm() -> None:
    assert "/dev/kvm" not in repr(sandbox_properties(kvm=False))
    assert "/dev/kvm" in repr(sandbox_properties(kvm=True))


def test_no_vmm_is_in_the_hosts_network_or_opens_a_device_there() -> None:
    sockets = ((Path("/run/hypemand/tap/tap.sock"), Path("/tap.sock")),)
    for plan in (PLAN, replace(PLAN, sockets=sockets)):
        properties = unit_properties(plan)
        assert ("PrivateNetwork", "b", True) in properties
        assert ("RestrictAddressFamilies", "(bas)", (True, ["AF_UNIX"])) in properties
        assert [name for name, *_ in properties if name == "DeviceAllow"] == []


def test_a_socket_that_is_not_there_is_for_the_launcher_to_miss() -> None:
    plan = replace(PLAN, sockets=((Path("/run/hypemand/tap/tap.sock"), Path("/tap.sock")),))
    properties = {name: value for name, _signature, value in unit_properties(plan)}
    assert properties["BindPaths"][-1] == ("/run/hypemand/tap/tap.sock", "/tap.sock", True, 0)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("After", ("a.service", "b.service"), ("After", "as", ["a.service", "b.service"])),
        ("Description", ("a VM",), ("Description", "s", "a VM")),
        ("Nice", ("-5",), ("Nice", "i", -5)),
        ("StartLimitBurst", ("3",), ("StartLimitBurst", "u", 3)),
        ("CPUWeight", ("200",), ("CPUWeight", "t", 200)),
        ("CPUWeight", ("idle",), ("CPUWeight", "t", 0)),
        ("MemoryHigh", ("536870912",), ("MemoryHigh", "t", 536870912)),
        ("MemoryHigh", ("infinity",), ("MemoryHigh", "t", INFINITY)),
        ("MemoryHigh", ("50%",), ("MemoryHighScale", "u", 2147483648)),
        ("RestartSec", ("1min 30s",), ("RestartUSec", "t", 90_000_000)),
        ("StartLimitIntervalSec", ("infinity",), ("StartLimitIntervalUSec", "t", INFINITY)),
        ("AllowedCPUs", ("0-2", "9"), ("AllowedCPUs", "ay", b"\x07\x02")),
    ],
)
def test_words_of_unit_files_become_d_bus_types(
    name: str, words: tuple[str, ...], expected: tuple[str, str, object]
) -> None:
    assert extra_properties({name: words}) == [expected]


def test_every_property_that_the_schema_allows_can_be_set() -> None:
    schema = json.loads((Path(next(iter(hypemand.config.__path__))) / "vm.schema.json").read_text())
    assert set(schema["properties"]["unit"]["properties"]) == EXTRA_PROPERTIES
