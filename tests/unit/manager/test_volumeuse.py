# SPDX-License-Identifier: Apache-2.0
"""One writer or many readers, whatever is started in which order."""

from pathlib import Path

import pytest

from hypemand.config.vmdef import parse_definition
from hypemand.errors import HypemandError, InUse, NotFound
from hypemand.manager.resources.volumeuse import Holder, VolumeUse, derive_filler
from hypemand.storage.volumes import VolumeStore

MIB = 1024 * 1024


def holder(vm: str, *, running: bool = True, volume: str = "data", **keys: bool) -> Holder:
    mount = {"volume": volume, "mount_path": "/srv", **keys}
    definition = parse_definition(vm, {"image": "app", "volumes": [mount]})
    return Holder(vm, f"id-of-{vm}", definition, running)


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    store = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
    store.load()
    store.create("data", 16 * MIB, {}, "data-id")
    return store


READS, OVERLAYS, WRITES = {"readonly": True}, {"overlay": True}, dict[str, bool]()


@pytest.mark.parametrize(
    ("there", "wanted", "allowed"),
    [
        (WRITES, WRITES, False),
        (WRITES, READS, False),
        (WRITES, OVERLAYS, False),
        (READS, WRITES, False),
        (OVERLAYS, WRITES, False),
        (READS, READS, True),
        (READS, OVERLAYS, True),
        (OVERLAYS, OVERLAYS, True),
    ],
)
def test_who_may_have_it_beside_whom(
    store: VolumeStore, there: dict[str, bool], wanted: dict[str, bool], *, allowed: bool
) -> None:
    use = VolumeUse(store, lambda: [holder("a", running=True, volume="data-id", **there)])
    definition = holder("b", running=True, volume="data", **wanted).definition
    if allowed:
        (attached,) = use.resolve("b", definition)
        assert (attached.volume.name, attached.mount.writes) == ("data", False)
    else:
        with pytest.raises(InUse, match="VM a "):
            use.resolve("b", definition)
        assert (
            use.resolve("b", holder("b", running=True, volume="data", required=False, **wanted).definition)
            == ()
        )


def test_a_vm_is_not_in_its_own_way_and_a_definition_alone_holds_nothing(store: VolumeStore) -> None:
    there = [holder("a"), holder("c", running=False)]
    use = VolumeUse(store, lambda: there)
    assert len(use.resolve("a", there[0].definition)) == 1
    there.pop(0)
    assert len(use.resolve("b", holder("b").definition)) == 1
    (attached,) = use.attachments(store.get("data"))
    assert (attached.vm, attached.vm_id, attached.running) == ("c", "id-of-c", False)


def test_what_is_not_there_is_named(store: VolumeStore) -> None:
    use = VolumeUse(store, list)
    with pytest.raises(NotFound, match="the volume other of VM b does not exist"):
        use.resolve("b", holder("b", volume="other").definition)
    assert use.resolve("b", holder("b", volume="other", required=False).definition) == ()


def test_a_device_has_one_writer_too_and_is_no_volume_of_that_name(tmp_path: Path) -> None:
    folder = tmp_path / "lun"
    store = VolumeStore(tmp_path / "volumes", tmp_path / "templates", devices={"lun": folder})
    store.load()
    mount = {"device": "lun/one", "mount_path": "/srv"}
    definition = parse_definition("a", {"image": "app", "volumes": [mount]})
    (attached,) = VolumeUse(store, list).resolve("a", definition)
    assert (attached.volume.name, attached.volume.disk) == ("lun/one", folder / "one")
    with pytest.raises(InUse, match="VM a writes to the device lun/one, so no other VM can use it"):
        VolumeUse(store, lambda: [Holder("a", "id", definition, running=True)]).resolve("b", definition)
    with pytest.raises(NotFound, match="there is no pool lun"):
        VolumeUse(store, list).resolve("b", holder("b", volume="lun/one").definition)
    assert store.find("lun/one") is None
    store.take_pools({}, {})
    with pytest.raises(NotFound, match="there is no pool lun of devices"):
        VolumeUse(store, list).resolve("a", definition)


def test_nobody_gets_a_volume_that_is_worked_on(store: VolumeStore) -> None:
    use = VolumeUse(store, list)
    volume = store.get("data")
    with use.work_on(volume, "resized"):
        with pytest.raises(InUse, match="is being resized"):
            use.resolve("b", holder("b").definition)
        with pytest.raises(InUse, match="is being resized"), use.work_on(volume, "removed"):
            raise AssertionError("two worked on it")
    with (
        pytest.raises(InUse, match="is in use by the running VM a"),
        VolumeUse(store, lambda: [holder("a")]).work_on(volume, "x"),
    ):
        raise AssertionError("it was in use")
    assert use.resolve("b", holder("b").definition)


def test_only_its_filler_gets_a_volume_that_is_not_filled_yet(store: VolumeStore) -> None:
    volume = store.create("new", 16 * MIB, {}, ready=False)
    use = VolumeUse(store, list)
    with pytest.raises(HypemandError, match="being filled"):
        use.resolve("b", holder("b", volume="new").definition)
    filler = derive_filler(volume)
    assert use.resolve(filler, holder(filler, volume=volume.id).definition)
