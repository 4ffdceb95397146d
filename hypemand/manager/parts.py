# SPDX-License-Identifier: Apache-2.0
"""Puts together what operations on VMs work with. Each part is given all that it needs when it is made."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hypemand.config.cluster import derive_vm_id
from hypemand.config.host import HostConfig
from hypemand.manager.compression import Compressions
from hypemand.manager.definitionfiles import DefinitionFiles
from hypemand.manager.events import Events
from hypemand.manager.fleet import Fleet
from hypemand.manager.guestclocks import GuestClocks
from hypemand.manager.guestops import GuestOps
from hypemand.manager.images.images import Images
from hypemand.manager.images.pulls import Pulls
from hypemand.manager.inventory import Inventory
from hypemand.manager.net.allocation import AddressAllocation
from hypemand.manager.net.names import Names
from hypemand.manager.net.networks import Networks
from hypemand.manager.resources.admission import derive_usable
from hypemand.manager.resources.diskwatch import DiskWatch
from hypemand.manager.resources.poolreader import PoolReader
from hypemand.manager.resources.space import measure_space
from hypemand.manager.resources.volumeuse import VolumeUse
from hypemand.manager.sharedquery import SharedQuery
from hypemand.manager.templates import Templates, find_template_user
from hypemand.manager.uids import Uids
from hypemand.model.evidence import UnitEvidence
from hypemand.model.space import SpaceReport
from hypemand.network.port import NetworkHost
from hypemand.network.sysctl import has_ipv6
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import Tools
from hypemand.storage.volumes import VolumeStore
from hypemand.systemd.cgroups import Easing
from hypemand.systemd.rootdir import Own
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.vm.places import Places
from hypemand.vm.record import VmRecord
from hypemand.vm.runfiles import Past
from hypemand.vm.runs import VmServices
from hypemand.vm.snapshots import SnapshotStore
from hypemand.vm.vm import Vm
from hypemand.vmm.build import BuildFinder
from hypemand.workers import Pool, run_in


class CurrentConfig:
    """The host config in force: called, it gives that."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config

    def __call__(self) -> HostConfig:
        return self._config

    def replace(self, config: HostConfig) -> None:
        """Another one is in force."""
        self._config = config


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of which a daemon has one each. `services`: those that every VM uses; `tasks`
    are of operations on VMs; `make_tools` gives the tools for one image."""

    config: CurrentConfig
    services: VmServices
    records: Inventory
    fleet: Fleet
    volumes: VolumeStore
    volume_use: VolumeUse
    pools: PoolReader
    snapshots: SnapshotStore
    images: Images
    guests: GuestOps
    names: Names
    networks: Networks
    disk_watch: DiskWatch
    compressions: Compressions
    clocks: GuestClocks
    space: SharedQuery[SpaceReport]
    easing: Easing
    tasks: Tasks
    files: DefinitionFiles
    events: Events
    builds: BuildFinder
    templates: Templates
    make_tools: Callable[[], Tools]

    @property
    def units(self) -> Units:
        """systemd's units."""
        return self.services.units

    @property
    def runtime_root(self) -> Path:
        """The folder of the runtime folders of VMs."""
        return self.config().runtime_dir / "vms"

    @property
    def vmm_root(self) -> Path:
        """The root directory that all VMMs have."""
        return _derive_vmm_root(self.config().runtime_dir)

    @property
    def vmm_own(self) -> Own:
        """Where a VMM finds in that what is its own."""
        return _derive_vmm_own(self.config().runtime_dir)

    def places(self, name: str) -> Places:
        """Where the files of a VM are."""
        return Places(self.records.folder(name), self.runtime_root / name, self.vmm_root, self.vmm_own)

    def adopt(self, record: VmRecord, past: Past) -> Vm:
        """A VM that is defined, and followed from now on. `past`: what its runs have left."""
        vm = Vm(record, self.places(record.name), self.services, self.networks, past)
        self.fleet.add(vm)
        vm.attach()
        return vm


@cache
def _derive_vmm_root(runtime_dir: Path) -> Path:
    """One object for all VMs, as they keep it."""
    return runtime_dir / "root"


@cache
def _derive_vmm_own(runtime_dir: Path) -> Own:
    """Likewise."""
    return Own(runtime_dir / "self")


def make_parts(
    config: HostConfig,
    services: VmServices,
    store: ImageStore,
    pulls: Pulls,
    network_host: NetworkHost,
    userdb: Path,
    events: Events,
    template_user: Callable[[], int] = find_template_user,
) -> Parts:
    """Make all components. `events`: those that `services` and `pulls` tell. `services.on_change` is called
    when the state of a VM has changed, after the names were updated. `template_user`: see `Templates`."""
    current = CurrentConfig(config)
    vms = config.state_dir / "vms"
    folders = (config.state_dir / "volumes", config.state_dir / "templates")
    volumes = VolumeStore(*folders, config.pools, config.pools_of_devices)
    pools = PoolReader(volumes)

    def take_record(record: VmRecord) -> None:
        fleet.take_record(record)

    def take_removal() -> None:
        space.outdate()

    def make_id(name: str) -> str:
        cluster = current().cluster
        return uuid.uuid4().hex if cluster is None else derive_vm_id(cluster, name)

    records = Inventory(vms, Uids(config.uid_range, userdb), take_record, make_id)
    snapshots = SnapshotStore(config.state_dir / "snapshots")
    fleet = Fleet(current, volumes, records.unreadable, snapshots)
    disk_watch = DiskWatch(current, fleet, take_removal)

    def check_complete() -> None:
        records.check_complete()
        snapshots.check_readable()

    images = Images(store, pulls, fleet.image_uses, check_complete, disk_watch.note_removal)
    guests = GuestOps(fleet, images)
    allocation = AddressAllocation(lambda: current().networks, fleet.network_members, has_ipv6=has_ipv6())
    names = Names(config.runtime_dir / "hosts", allocation.members, guests)

    async def list_live() -> Set[str]:
        records.check_readable()  # else it is not known what they have
        states = await services.units.list_vms()
        return {name for name, state in states.items() if UnitEvidence.from_active_state(state).is_live}

    def take_change() -> None:
        names.states_changed()
        services.on_change()

    builds = BuildFinder()
    templates = Templates(current, builds, services.units, services.connect, template_user)
    space = SharedQuery("space", lambda: _report_space(current(), images, fleet, pools))
    return Parts(
        config=current,
        services=replace(
            services,
            on_change=take_change,
            volume_disk=volumes.find_disk,
            find_program=guests.find_program,
        ),
        records=records,
        fleet=fleet,
        volumes=volumes,
        volume_use=VolumeUse(volumes, fleet.holders),
        pools=pools,
        snapshots=snapshots,
        images=images,
        guests=guests,
        names=names,
        networks=Networks(network_host, allocation, list_live, vms, on_members=names.members_changed),
        disk_watch=disk_watch,
        compressions=Compressions(
            current, fleet, pulls.make_tools, services.tell_event, disk_watch.note_removal
        ),
        clocks=GuestClocks(fleet),
        space=space,
        easing=Easing(),
        tasks=Tasks("the VMs"),
        files=DefinitionFiles(),
        events=events,
        builds=builds,
        templates=templates,
        make_tools=pulls.make_tools,
    )


async def _report_space(config: HostConfig, images: Images, fleet: Fleet, pools: PoolReader) -> SpaceReport:
    """Disk usage, free space, and what disks and volumes may grow to."""
    await pools.read()
    unused = sum(image.size for image in await images.prune_images(every=True, dry_run=True))
    uses = await run_in(Pool.TOOLS, measure_space, config.state_dir, config.runtime_dir, unused)
    disks = await fleet.look_at_disks()
    allowed = derive_usable(disks.room.total, config.disk)
    return SpaceReport(uses, disks.room, fleet.promised_room(disks), allowed, fleet.report_pools())
