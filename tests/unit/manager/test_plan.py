# SPDX-License-Identifier: Apache-2.0
"""From a definition to a start."""

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import MIB, DirectoryMount, VolumeMount
from hypemand.config.host import JournalPolicy
from hypemand.config.network import Bandwidth
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition
from hypemand.manager.plan import (
    Attached,
    Connection,
    FindWarm,
    Plan,
    make_plan,
    plan_template,
    stop_grace,
)
from hypemand.model.images import OciConfig
from hypemand.model.state import Origin
from hypemand.network.port import BridgePlan, PortPlan
from hypemand.protocol.configdisk import GuestInterface, encode_config_disk
from hypemand.protocol.records import parse_records
from hypemand.storage.devices import Device
from hypemand.storage.hostfiles import NO_FILES, DirectoryImage, HostFiles
from hypemand.storage.images import Image
from hypemand.storage.volumes import VolumeStore
from hypemand.systemd.rootdir import Own
from hypemand.systemd.units import unit_properties
from hypemand.vm.places import Places
from hypemand.vm.record import Lease, VmRecord
from hypemand.vmm.accel import Accel, AccelKind
from hypemand.vmm.commandline import VmmPlan
from hypemand.vmm.host import Kernel, VmmHost
from hypemand.vmm.template import template_line

HOST = VmmHost(
    binary=Path("/usr/bin/qemu-system-x86_64"),
    kernel=Kernel(Path("/k/vmlinux"), "6.12.0", Path("/k/headers.erofs")),
    initrd=Path("/g/initrd.cpio"),
    accel=Accel(AccelKind.TCG, "no KVM"),
    tsc_khz=2596120,
    architecture="x86_64",
    page_cache=1024 * MIB,
    journal=JournalPolicy(64 * MIB, 256 * MIB),
)


OWN = Own(Path("/run/hypemand/self"))
PLACES = Places(Path("/state/web"), Path("/run/hypemand/vms/web"), Path("/run/hypemand/root"), OWN)
IMAGE = Image(
    name="app",
    id="x",
    digest="sha256:0",
    architecture="amd64",
    size=1,
    created_at=0.0,
    source="",
    config=OciConfig(cmd=("/bin/app",), stop_signal="SIGINT"),
    folder=Path("/images/x"),
)


def plan(
    host: VmmHost = HOST,
    in_root: Collection[Path] = (),
    host_files: HostFiles = NO_FILES,
    origin: FindWarm | None = None,
    **keys: object,
) -> Plan:
    definition = parse_definition("web", {"image": "app", **keys})
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, definition)
    is_in_root = in_root.__contains__
    what = (record, definition, IMAGE, host, PLACES)
    return make_plan(*what, host_files=host_files, origin=origin, in_root=is_in_root)


def test_the_units_limits_leave_room_for_the_vmm() -> None:
    unit = plan(memory="256M", vcpus=2).unit
    assert unit.memory_max >= 256 * MIB + 128 * MIB + HOST.page_cache
    assert unit.cpu_quota > 2
    assert unit.tasks_max > 64 + 2, "a VMM has a thread for each of 64 requests to disks"


def test_the_vmm_can_write_to_its_runtime_folder_and_its_disk_only() -> None:
    assert {host for host, _inside in plan().unit.writable} == {PLACES.runtime, PLACES.disk}


def test_every_file_that_the_vmm_is_told_of_is_in_its_root() -> None:
    unit = plan().unit
    seen = {inside for _host, inside in (*unit.readable, *unit.writable)}
    told = " ".join(unit.start)
    assert {OWN.kernel, OWN.initrd, OWN.image, OWN.disk, OWN.runtime} <= seen
    assert f"-kernel {OWN.kernel} -initrd {OWN.initrd}" in told
    for path in (OWN.runtime / "config.img", OWN.image, OWN.disk):
        assert f"file={path},format=raw" in told


def test_what_is_in_the_root_anyway_is_not_bound() -> None:
    initrd, headers = HOST.initrd, HOST.kernel.headers
    assert headers is not None
    unit = plan(in_root=(initrd, headers)).unit
    told = " ".join(unit.start)
    assert f"-kernel {OWN.kernel} -initrd {initrd}" in told
    assert f"file={headers},format=raw,readonly=on" in told
    assert {inside for _host, inside in unit.readable} >= {OWN.kernel, OWN.image}
    assert not {OWN.initrd, OWN.headers, initrd, headers} & {path for pair in unit.readable for path in pair}


def test_kernel_headers_are_a_disk_that_can_only_be_read() -> None:
    planned = plan()
    told = " ".join(planned.unit.start)
    assert (Path("/k/headers.erofs"), OWN.headers) in planned.unit.readable
    assert f"file={OWN.headers},format=raw,readonly=on -device virtio-blk-device," in told
    assert "serial=hypeman-headers" in told
    assert planned.guest.headers


def test_a_guests_systemd_gets_the_id_of_the_vm() -> None:
    assert plan().guest.machine_id == "0" * 32


def test_without_kernel_headers_there_is_no_disk() -> None:
    bare = replace(HOST, kernel=replace(HOST.kernel, headers=None))
    for planned, headers in ((plan(kernel_headers=False), False), (plan(bare), True)):
        assert "headers" not in " ".join(planned.unit.start)
        assert not any(inside == OWN.headers for _host, inside in planned.unit.readable)
        # a guest that was to have them says itself that there is no disk
        assert planned.guest.headers is headers


def test_the_exit_helper_is_told_what_it_judges_by() -> None:
    told = plan(guest_agent=False).unit.stop_post[-6:]
    assert told == ("/state/web", "hypeman-vm-web.service", "2", "0", "exec", str(PLACES.runtime))
    assert plan(cmd=["/sbin/init", "--log-level=debug"]).unit.stop_post[-2] == "systemd"


def test_a_check_reaches_the_guest_and_the_exit_helper() -> None:
    planned = plan(ready={"log": "^up on $HOME$"})
    # systemd replaces variables in what it executes, and $$ by $
    assert planned.unit.stop_post[-3] == "1:log ^up on $$HOME$$"
    assert ("ready", "check=log,interval=1000,pattern=^up on $HOME$") in guest_records(planned)
    assert not any(key == "ready" for key, _ in guest_records(plan()))
    assert plan(ready="notify:db.service", cmd=["/sbin/init"]).unit.stop_post[-3] == "1:notify of db.service"
    with pytest.raises(InvalidDefinition, match="which there is only in systemd mode"):
        plan(ready="notify:db.service")


def guest_records(planned: Plan) -> list[tuple[str, str]]:
    """What the config disk has."""
    disk = encode_config_disk(planned.guest)
    records = parse_records(disk[16 : 16 + int.from_bytes(disk[8:12], "little")])
    return [(key, value.decode()) for key, value in records.pairs]


def test_variables_of_files_of_the_host_are_between_the_images_and_the_definitions() -> None:
    read = HostFiles({"A": "file", "B": "file"})
    planned = plan(env={"B": "definition"}, env_file=["/etc/a.env"], host_files=read)
    assert planned.guest.env == {"A": "file", "B": "definition"}


def test_files_are_a_disk_in_the_runtime_folder() -> None:
    planned = plan(files=[{"path": "/a", "content": "of the file"}])
    told = " ".join(planned.unit.start)
    assert f"file={OWN.runtime}/files.img,format=raw,readonly=on" in told
    assert "serial=hypeman-files" in told
    assert ("files", "1") in guest_records(planned)
    assert "hypeman-files" not in " ".join(plan().unit.start)
    assert not {"files", "secret"} & {key for key, _ in guest_records(plan())}


def test_a_directory_of_the_host_is_a_disk_after_the_volumes_that_can_only_be_read() -> None:
    image = Path("/state/web/dir-1.erofs")
    read = HostFiles(directories=(DirectoryImage(DirectoryMount("/srv/www", "/www"), image),))
    planned = plan(host_files=read)
    serial = read.directories[0].serial
    assert len(serial) == 20
    assert (image, OWN.volume(0)) in planned.unit.readable
    told = " ".join(planned.unit.start)
    assert f"file={OWN.volume(0)},format=raw,readonly=on" in told
    assert f"serial={serial}" in told
    record = f"serial={serial},path=/www,readonly=1,required=1,fstype=erofs"
    assert ("volume", record) in guest_records(planned)


SECRETS = [
    {"name": "key", "source": "/etc/key", "mode": "0440", "owner": "app"},
    {"name": "store", "encrypted": True},
    {"name": "text", "encrypted_content": "AAEC\nAwQ="},
    {"name": "named"},
]


@pytest.mark.parametrize("in_root", [(), (HOST.kernel.path,), (HOST.kernel.path, HOST.initrd)])
@pytest.mark.parametrize(
    "keys",
    [
        {"secrets": SECRETS},
        {"kernel_headers": False, "vcpus": 3, "memory": "200M", "disk_io": {"iops": 100}},
        {"mode": "systemd", "cmd": ["/sbin/init"], "guest_agent": False},
    ],
)
def test_the_template_of_a_vm_is_planned_as_its_start_would_ask_for_it(
    in_root: Collection[Path], keys: dict[str, Any]
) -> None:
    planned: list[VmmPlan] = []
    plan(in_root=in_root, origin=lambda vmm, _: planned.append(vmm), network="none", **keys)
    definition = parse_definition("web", {"image": "app", "network": "none", **keys})
    template = plan_template(definition, HOST, OWN, in_root=in_root.__contains__)
    assert template_line(template, OWN.runtime) == template_line(planned[0], OWN.runtime)


def test_secrets_are_credentials_of_the_unit_that_the_launcher_makes_a_disk_of() -> None:
    planned = plan(secrets=SECRETS)
    properties = {name: value for name, _, value in unit_properties(planned.unit)}
    assert properties["LoadCredential"] == [("key", "/etc/key"), ("named", "named")]
    assert properties["LoadCredentialEncrypted"] == [("store", "store")]
    assert properties["SetCredentialEncrypted"] == [("text", b"\0\1\2\3\4")]
    start = planned.unit.start
    launcher = start.index("/usr/lib/hypemand/launcher")
    assert start[launcher + 1 : launcher + 3] == ("--secrets=key,store,text,named", str(OWN.runtime))
    assert "-add-fd fd=8,set=1" in " ".join(start)
    assert "file=/dev/fdset/1,format=raw,readonly=on" in " ".join(start)
    assert [value for key, value in guest_records(planned) if key == "secret"] == [
        "name=key,mode=0440,owner=app",
        *(f"name={name},mode=0400,owner=0:0" for name in ("store", "text", "named")),
    ]
    plain = {name for name, _, _ in unit_properties(plan().unit)}
    assert not {"LoadCredential", "LoadCredentialEncrypted", "SetCredentialEncrypted"} & plain
    assert plan().unit.start[launcher + 1] == str(OWN.runtime)


def test_the_console_is_bounded_before_anything_else_runs() -> None:
    unit = plan().unit
    console = "/usr/lib/hypemand/hypeman-console"
    assert unit.start[:4] == (console, str(OWN.runtime), str(64 * MIB), str(256 * MIB))
    # its own end is over before systemd ends the step: TimeoutStopSec= is 35 s
    assert unit.start[4:8] == ("--journal", str(OWN.journal), "web", "33")


def test_an_init_has_to_be_named_by_its_path() -> None:
    with pytest.raises(InvalidDefinition, match="must be an absolute path, not init"):
        plan(mode="systemd", cmd=["init"])


@pytest.mark.parametrize(
    ("stop_timeout", "step", "grace"),
    [(1, 6, 1), (30, 35, 30), (600, 90, 600), (1_000_000, 90, 86400), ("infinity", 90, 86400)],
)
def test_no_step_of_an_end_but_the_guests_own_takes_long(
    stop_timeout: int | str, step: int, grace: int
) -> None:
    """systemd.service(5): TimeoutStopSec= bounds each step. The guest's may be longer: ExecStop= says so."""
    unit = plan(stop_timeout=stop_timeout).unit
    assert unit.stop_timeout == step
    assert unit.stop[-2:] == (str(grace), str(PLACES.state))


@pytest.mark.parametrize(("stop_timeout", "grace"), [(30.0, 30), (1.5, 2), (1e6, 86400), (None, 86400)])
def test_the_program_gets_its_time_in_whole_seconds(stop_timeout: float | None, grace: int) -> None:
    assert stop_grace(stop_timeout) == grace


def test_a_volume_is_seen_by_its_vmm_alone_and_read_only_where_it_only_reads(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
    store.load()
    volumes = [
        Attached(store.create(name, 16 * MIB, {}), VolumeMount(name, f"/srv/{name}", **keys))
        for name, keys in (("w", {}), ("r", {"readonly": True}), ("o", {"overlay": True}))
    ]
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, parse_definition("web", {"image": "app"}))
    made = make_plan(record, record.definition, IMAGE, HOST, PLACES, volumes, in_root=lambda _path: False)
    places = [(attached.volume.disk, OWN.volume(number)) for number, attached in enumerate(volumes)]
    assert made.unit.volumes == (places[0],)
    assert places[0] not in made.unit.readable
    for place in places[1:]:
        assert place in made.unit.readable
        assert place not in made.unit.volumes
    for attached, (_, inside) in zip(volumes, places, strict=True):
        drive = next(word for word in made.unit.start if f"file={inside}," in word)
        assert ("readonly=on" in drive) is not attached.mount.writes
        assert ("discard=unmap" in drive) is attached.mount.writes
        assert any(word.endswith(f"serial={attached.volume.serial}") for word in made.unit.start)
    told = [(v.serial, v.path, v.readonly, v.overlay) for v in made.guest.volumes]
    serials = [attached.volume.serial for attached in volumes]
    assert told == [
        (serials[0], "/srv/w", False, False),
        (serials[1], "/srv/r", True, False),
        (serials[2], "/srv/o", True, True),
    ]


def test_a_volume_at_the_root_is_the_vms_own_disk(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
    store.load()
    paths = {"other": "/srv", "own": "/"}
    mounts = [{"volume": name, "mount_path": path} for name, path in paths.items()]
    definition = parse_definition("web", {"image": "app", "disk": "1G", "volumes": mounts})
    volumes = [Attached(store.create(one.volume, 16 * MIB, {}), one) for one in definition.volumes]
    other, own = (attached.volume for attached in volumes)
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, definition)
    made = make_plan(record, definition, IMAGE, HOST, PLACES, volumes, in_root=lambda _path: False)
    assert (own.disk, OWN.disk) in made.unit.writable
    assert PLACES.disk not in {place for place, _ in (*made.unit.writable, *made.unit.volumes)}
    assert made.unit.volumes == ((other.disk, OWN.volume(0)),)
    assert [(volume.serial, volume.path) for volume in made.guest.volumes] == [(other.serial, "/srv")]
    assert any(word.endswith("serial=hypeman-disk") for word in made.unit.start)
    assert not any(own.serial in word for word in made.unit.start)
    assert (definition.root_volume, definition.local_disk) == (definition.volumes[1], 0)


def test_a_device_is_a_drive_that_the_unit_may_open_as_a_member_of_its_group() -> None:
    devices = [
        Attached(
            Device(f"lun/{name}", Path(f"/dev/lun/{name}"), group),
            VolumeMount(f"lun/{name}", "/d", is_device=True, **keys),
        )
        for name, group, keys in (("w", 6, {}), ("r", 300, {"readonly": True}))
    ]
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, parse_definition("web", {"image": "app"}))
    made = make_plan(record, record.definition, IMAGE, HOST, PLACES, devices, in_root=lambda _path: False)
    assert made.unit.volumes == ((Path("/dev/lun/w"), OWN.volume(0)),)
    assert (Path("/dev/lun/r"), OWN.volume(1)) in made.unit.readable
    assert made.unit.mounts == ()
    properties = unit_properties(made.unit)
    assert [value for name, _, value in properties if name == "DeviceAllow"] == [
        [("/dev/lun/w", "rw")],
        [("/dev/lun/r", "r")],
    ]
    assert ("SupplementaryGroups", "as", ["300", "6"]) in properties
    for attached, number in zip(devices, (0, 1), strict=True):
        drive = next(word for word in made.unit.start if f"file={OWN.volume(number)}," in word)
        assert ("readonly=on" in drive) is not attached.mount.writes
        (device,) = (word for word in made.unit.start if word.endswith(f"serial={attached.volume.serial}"))
        assert "werror=report" in device, "the host does not learn when one that is full is not any more"


def test_a_guest_is_told_its_addresses_and_its_vmm_the_tap() -> None:
    bridge = BridgePlan("lab", "lab0", IPv4Interface("10.7.0.1/24"), None, 1500, True, frozenset())
    lease = Lease("lab", "02:00:00:00:00:01", IPv4Address("10.7.0.2"))
    port = PortPlan("web", 61200, bridge, lease.mac, lease.ipv4, None, None, (), Bandwidth())
    interface = GuestInterface(lease.mac, "eth0", 1500, ("10.7.0.2/24",), ("10.7.0.1",))
    definition = parse_definition("web", {"image": "app"})
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, definition)
    connection = Connection(lease, port, interface, ("192.0.2.1",))
    made = make_plan(record, definition, IMAGE, HOST, PLACES, (), connection, in_root=lambda _path: False)
    assert (made.guest.interfaces, made.guest.dns) == ((interface,), ("192.0.2.1",))
    assert made.unit.start[0] == "/usr/lib/hypemand/hypeman-console"
    assert made.unit.start[4:7] == ("--journal", str(OWN.journal), "web")
    assert made.unit.start[8:11] == ("/usr/lib/hypemand/launcher", str(OWN.runtime), str(OWN.tap))
    assert "mac=02:00:00:00:00:01" in " ".join(made.unit.start)
    journal = (Path("/run/systemd/journal/socket"), OWN.journal)
    assert made.unit.sockets == (journal, (Path("/run/hypemand/tap/tap.sock"), OWN.tap))
    bare = make_plan(record, definition, IMAGE, HOST, PLACES, in_root=lambda _path: False)
    assert (bare.guest.interfaces, bare.guest.dns, bare.unit.sockets) == ((), (), (journal,))
    assert bare.unit.start[10] == "-"


def test_the_unit_renews_a_disk_that_does_not_persist() -> None:
    assert plan().unit.stop_post[-1] == str(PLACES.runtime)
    assert plan(persistent=False, disk="64M").unit.stop_post[-3:] == (
        str(64 * MIB),
        "61200",
        str(PLACES.templates),
    )


def test_a_check_alone_can_have_it_restarted() -> None:
    restarts = {"tcp": 80, "on_failure": "restart"}
    assert plan(health="tcp:80").unit.restart == "no"
    assert plan(health=restarts).unit.restart == "on-watchdog"
    assert plan(health=restarts, restart="always").unit.restart == "always"
