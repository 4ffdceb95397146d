# SPDX-License-Identifier: Apache-2.0
"""Bodies of POST /instances."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from typing import Any

import pytest

from hypemand.api.create import MAX_PROBLEMS, CreateRequest, generate_name, parse_create
from hypemand.api.failures import error_json
from hypemand.api.platforms import host_platform
from hypemand.api.render import derive_check
from hypemand.config.definition import Definition, DefinitionDefaults, Restart, VolumeMount
from hypemand.config.health import Health
from hypemand.config.names import is_name
from hypemand.config.network import Bandwidth, NetworkConfig, NetworkUse
from hypemand.config.ready import Check, Ready
from hypemand.errors import HypemandError, InvalidDefinition, InvalidRequest
from hypemand.model.document import encode
from hypemand.model.lifetime import Lifetime
from tests.unit.api.harness import IMAGE, description

LAN = {"lan": NetworkConfig("lan", "lan0", IPv4Interface("10.1.1.1/24"), None)}
BASE: dict[str, object] = {"name": "web", "image": IMAGE}


DEFAULT_TIMES = {
    "interval": "10s",
    "timeout": "2s",
    "start_period": "30s",
    "failure_threshold": 3,
    "success_threshold": 1,
}


def parse(body: Mapping[str, object]) -> CreateRequest:
    return parse_create(body, DefinitionDefaults())


def test_every_supported_field_of_the_client_is_translated() -> None:
    body: dict[str, object] = BASE | {
        "size": "512MB",
        "overlay_size": "2GB",
        "disk_io_bps": "100MB/s",
        "vcpus": 3,
        "cmd": ["-c", "true"],
        "entrypoint": ["sh"],
        "env": {"A": "1"},
        "tags": {"t": "v"},
        "skip_guest_agent": True,
        "skip_kernel_headers": True,
        "restart_policy": {"policy": "on_failure", "backoff": "30s", "max_attempts": 3},
        "health_check": {"type": "none"},
        "network": {"enabled": False},
        "hypervisor": "qemu-microvm",
        "platform": host_platform(),
        "ttl": "1h30m",
        "volumes": [{"volume_id": "data", "mount_path": "/srv"}],
    }
    described = description().document["components"]["schemas"]["CreateInstance"]["properties"]
    assert set(body) == set(described) - {"expires_at"}
    assert parse(body) == CreateRequest(
        Definition(
            name="web",
            image=IMAGE,
            memory=512 * 2**20,
            disk=2 * 2**30,
            disk_io={"total": 100_000_000},
            vcpus=3,
            cmd=("-c", "true"),
            entrypoint=("sh",),
            env={"A": "1"},
            tags={"t": "v"},
            volumes=(VolumeMount("data", "/srv"),),
            guest_agent=False,
            kernel_headers=False,
            restart=Restart.ON_FAILURE,
            restart_backoff=30.0,
            restart_max_attempts=3,
            restart_stable_after=600.0,
            network=None,
        ),
        start=True,
        lifetime=Lifetime(5400.0),
        patience=5.0,
    )
    assert parse(BASE | {"expires_at": "2999-01-01T01:00:00+01:00"}).lifetime == Lifetime(
        at=datetime(2999, 1, 1, tzinfo=UTC).timestamp()
    )


def test_a_health_check_is_translated_and_shown_as_it_came() -> None:
    bodies: list[dict[str, Any]] = [
        {
            "type": "http",
            "http": {"port": 80, "path": "/up", "scheme": "http", "expected_status": 204},
            "interval": "1m30s",
            "timeout": "500ms",
            "start_period": "0s",
            "failure_threshold": 5,
            "success_threshold": 2,
        },
        {"type": "tcp", "tcp": {"port": 80}} | DEFAULT_TIMES,
        {"type": "exec", "exec": {"command": ["a", "b"], "working_dir": "/srv"}} | DEFAULT_TIMES,
    ]
    for body in bodies:
        health = parse(BASE | {"health_check": body}).definition.health
        shown = {key: value for key, value in encode(derive_check(health)).items() if value is not None}
        assert shown == body
    short = parse(BASE | {"health_check": {"tcp": {"port": 80}}}).definition.health
    assert short == Health(Ready(Check.TCP, port=80, interval=10.0))
    assert parse(BASE | {"health_check": {}}).definition.health is None


def test_a_rate_of_disks_is_in_bytes_as_the_client_writes_it() -> None:
    for rate in ("2MB/s", "2MB", "2MBps", "2mb/s", "2000 kB/s"):
        assert parse(BASE | {"disk_io_bps": rate}).definition.disk_io == {"total": 2_000_000}


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (10, "is the number 10, not a rate; write a rate, for example 100MB/s"),
        ("10", "'10' is not a rate; write 64kB/s to 100GB/s"),
        ("1TB/s", "'1TB/s' is not a rate; write 64kB/s to 100GB/s"),
        ("10Mbps", "'10Mbps' is ambiguous: bytes in tc(8), bits elsewhere; write 10Mbit or 10MB/s"),
        ("200GB", "200GB/s is too fast; write 64kB/s to 100GB/s"),
    ],
)
def test_what_is_no_rate_of_disks_is_refused_with_one(rate: object, words: str) -> None:
    with pytest.raises(InvalidDefinition) as found:
        parse(BASE | {"disk_io_bps": rate})
    assert str(found.value) == f"disk_io_bps: {words}"


def test_what_is_left_out_or_null_takes_the_defaults_of_the_host() -> None:
    defaults = DefinitionDefaults(vcpus=1)
    nulls: dict[str, object] = {"size": None, "gpu": None, "network": None, "restart_policy": None}
    for body in (BASE, BASE | nulls, BASE | {"network": {}, "restart_policy": {}}):
        assert parse_create(body, defaults).definition == Definition("web", IMAGE, vcpus=1)
    native = {"definition": {"image": IMAGE}, "name": "web"}
    assert parse_create(native, defaults).definition == Definition("web", IMAGE, vcpus=1)


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ({"gpu": {}, "hotplug_size": "1GB"}, ["gpu", "hotplug_size"]),
        ({"disk_io_bps": "1kB/s"}, ["disk_io_bps"]),
        ({"disk_io_bps": 100_000_000}, ["disk_io_bps"]),
        ({"disk_io_bps": "fast", "vcpus": 0}, ["disk_io_bps", "vcpus"]),
        ({"ttl": "-1s"}, ["ttl"]),
        ({"ttl": "infinity"}, ["ttl"]),
        ({"ttl": 60}, ["ttl"]),
        ({"ttl": "1h", "expires_at": "2999-01-01T00:00:00Z"}, ["ttl"]),
        ({"expires_at": "2001-01-01T00:00:00Z"}, ["expires_at"]),
        ({"expires_at": "2999-01-01T00:00:00"}, ["expires_at"]),
        ({"expires_at": "soon"}, ["expires_at"]),
        ({"volumes": {}}, ["volumes"]),
        ({"volumes": [7]}, ["volumes[0]"]),
        ({"volumes": [{"mount_path": "/a"}]}, ["volumes[0].volume_id"]),
        ({"volumes": [{"volume_id": "UP", "mount_path": "a"}]},
         ["volumes[0].mount_path", "volumes[0].volume_id"]),
        ({"volumes": [{"volume_id": "a", "mount_path": "/a", "size": 1}]}, ["volumes[0].size"]),
        ({"memory": "1G"}, ["memory"]),
        ({"size": "a lot", "vcpus": 0}, ["size", "vcpus"]),
        ({"overlay_size": 1.5}, ["overlay_size"]),
        ({"cmd": "true"}, ["cmd"]),
        ({"cmd": [1]}, ["cmd[0]"]),
        ({"env": {"A": True}}, ["env.A"]),
        ({"skip_guest_agent": "yes"}, ["skip_guest_agent"]),
        ({"restart_policy": "always"}, ["restart_policy"]),
        ({"restart_policy": {"policy": "sometimes"}}, ["restart_policy.policy"]),
        ({"restart_policy": {"policy": []}}, ["restart_policy.policy"]),
        ({"restart_policy": {"max_attempts": -1}}, ["restart_policy.max_attempts"]),
        ({"restart_policy": {"policy": "always", "backoff": "soon"}}, ["restart_policy.backoff"]),
        ({"restart_policy": {"stable_after": "-1m"}}, ["restart_policy.stable_after"]),
        ({"restart_policy": {"retries": 3}}, ["restart_policy.retries"]),
        ({"health_check": "http"}, ["health_check"]),
        ({"health_check": {"type": "ping"}}, ["health_check.type"]),
        ({"health_check": {"type": "http"}}, ["health_check.http"]),
        ({"health_check": {"type": "tcp", "http": {"port": 80}}}, ["health_check"]),
        ({"health_check": {"tcp": {"port": 80}, "http": {"port": 80}}}, ["health_check"]),
        ({"health_check": {"type": "tcp", "tcp": {}}}, ["health_check.tcp.port"]),
        ({"health_check": {"type": "tcp", "tcp": {"port": 0}}}, ["health_check.tcp"]),
        ({"health_check": {"type": "exec", "exec": {"command": []}}}, ["health_check.exec"]),
        ({"health_check": {"http": {"port": 80, "scheme": "https"}}}, ["health_check.http.scheme"]),
        ({"health_check": {"http": {"port": 80, "body": "x"}}}, ["health_check.http.body"]),
        ({"health_check": {"tcp": {"port": 80}, "interval": "0s"}}, ["health_check.interval"]),
        ({"health_check": {"tcp": {"port": 80}, "retries": 3}}, ["health_check.retries"]),
        ({"health_check": {"tcp": {"port": 80}}, "skip_guest_agent": True}, ["health_check"]),
        ({"health_check": {"exec": {"command": ["x"]}}, "skip_guest_agent": True}, ["health_check"]),
        ({"health_check": {"tcp": {"port": 80}}, "network": {"enabled": False}}, ["health_check.tcp"]),
        ({"network": {"enabled": 0}}, ["network.enabled"]),
        ({"network": {"enabled": False, "egress": {}}}, ["network.egress"]),
        ({"network": {"egress": {"enabled": True}}}, ["network.egress"]),
        ({"network": []}, ["network"]),
        ({"network": {"bandwidth_upload": "fast"}}, ["network.bandwidth_upload"]),
        ({"network": {"bandwidth_upload": "1Tbps", "bandwidth_download": 5}},
         ["network.bandwidth_download", "network.bandwidth_upload"]),
        ({"network": {"bandwidth_download": "1kbps"}}, ["network.bandwidth_download"]),
        ({"network": {"name": "lan"}}, ["network.name"]),
        ({"hypervisor": "firecracker"}, ["hypervisor"]),
        ({"name": None}, ["name"]),
        ({"name": 7}, ["name"]),
        ({"image": None}, ["image"]),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_refused_by_the_clients_name(
    part: dict[str, object], keys: list[str]
) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse(BASE | part)
    assert sorted(p.key for p in caught.value.problems) == keys


@pytest.mark.parametrize("platform", ["linux/s390x", "windows/amd64", "amd64", "linux/amd64/v2/x"])
def test_another_platform_than_the_hosts_is_refused(platform: str) -> None:
    with pytest.raises(InvalidRequest, match="platform: ") as caught:
        parse(BASE | {"platform": platform})
    assert caught.value.code == "invalid_platform"


def test_every_field_that_the_published_client_can_send_is_known_by_name() -> None:
    from hypeman.types.instance_create_params import InstanceCreateParams

    known = description().document["components"]["schemas"]["CreateInstance"]["properties"]
    for field in InstanceCreateParams.__annotations__:
        if field in known:
            continue
        with pytest.raises(InvalidDefinition, match=f"{field}: is not supported"):
            parse(BASE | {field: "x"})


def test_a_native_definition_has_its_name_where_it_likes_or_gets_one() -> None:
    assert parse({"definition": BASE}).definition.name == "web"
    assert parse({"definition": {"image": IMAGE}, "name": "web"}).definition.name == "web"
    made = parse({"definition": {"image": IMAGE}}).definition.name
    assert is_name(made)
    assert made != generate_name()
    assert parse({"definition": BASE, "start": False}).start is False


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"definition": []}, "definition"),
        ({"definition": BASE, "strat": True}, "strat"),
        ({"definition": BASE, "start": "yes"}, "start"),
        ({"definition": BASE, "name": 5}, "name"),
        ({"definition": BASE, "name": "other"}, "web"),
        ({"definition": {"image": IMAGE, "name": 5}}, "name"),
        ({"definition": {"image": IMAGE, "size": "1G"}}, "size"),
        ({"definition": {"image": IMAGE}, "name": "UPPER"}, "UPPER"),
    ],
)
def test_a_wrong_native_body_is_refused_by_name(body: dict[str, object], words: str) -> None:
    with pytest.raises(HypemandError, match=words) as caught:
        parse(body)
    assert caught.value.status == 400


def test_volumes_are_those_of_the_client() -> None:
    mounts = [
        {"volume_id": "data", "mount_path": "/srv", "readonly": None},
        {"volume_id": "base", "mount_path": "/opt/base", "overlay": True, "overlay_size": "1GB"},
    ]
    definition = parse(BASE | {"volumes": mounts}).definition
    assert definition.volumes == (
        VolumeMount("data", "/srv"),
        VolumeMount("base", "/opt/base", overlay=True),
    )


@pytest.mark.parametrize("size", ["11GB", "much", 1.5, True])
def test_an_overlay_that_the_disk_cannot_hold_is_refused(size: object) -> None:
    mounts = [{"volume_id": "base", "mount_path": "/b", "overlay": True, "overlay_size": size}]
    with pytest.raises(InvalidRequest, match="overlay_size: "):
        parse(BASE | {"volumes": mounts})


@pytest.mark.parametrize(
    ("network", "use"),
    [
        (None, NetworkUse("lan")),
        ({}, NetworkUse("lan")),
        ({"enabled": None}, NetworkUse("lan")),
        ({"enabled": True}, NetworkUse("lan")),
        ({"enabled": False}, None),
        ({"enabled": False, "bandwidth_upload": "1Gbps"}, None),
        ({"bandwidth_upload": "1Gbps"}, NetworkUse("lan", bandwidth=Bandwidth(125_000_000))),
        (
            {"enabled": True, "bandwidth_upload": "20 Mbps", "bandwidth_download": "125MB/s"},
            NetworkUse("lan", bandwidth=Bandwidth(2_500_000, 125_000_000)),
        ),
        (
            {"bandwidth_download": "800kbit", "bandwidth_upload": None},
            NetworkUse("lan", bandwidth=Bandwidth(None, 100_000)),
        ),
    ],
)  # fmt: skip
def test_a_vm_has_the_hosts_default_network_unless_it_wants_none(
    network: object, use: NetworkUse | None
) -> None:
    body = BASE | {"network": network}
    assert parse_create(body, DefinitionDefaults(network="lan"), LAN).definition.network == use


def test_where_vms_have_no_network_by_default_asking_for_one_is_refused() -> None:
    defaults = DefinitionDefaults(network=None)
    assert parse_create(BASE, defaults, {}).definition.network is None
    for network in ({"enabled": True}, {"bandwidth_upload": "1Mbps"}):
        with pytest.raises(InvalidDefinition, match=r"network\.enabled: the host config"):
            parse_create(BASE | {"network": network}, defaults, {})


def test_a_definition_must_fit_the_hosts_networks() -> None:
    for wish, words in (
        ("dmz", "network: dmz is not a network of this host; write lan or none"),
        ({"name": "lan", "address": "10.9.9.9"}, "network.address: 10.9.9.9 is not in 10.1.1.0/24"),
    ):
        body = {"definition": {"image": IMAGE, "network": wish}}
        assert parse(body).definition.network is not None
        with pytest.raises(InvalidDefinition, match=words):
            parse_create(body, DefinitionDefaults(), LAN)


@pytest.mark.parametrize(
    "body",
    [
        BASE | {f"k{number}": 1 for number in range(20_000)},
        {"definition": BASE | {f"k{number}": 1 for number in range(20_000)}},
        {"definition": BASE | {"env": {f"k{number}": {} for number in range(20_000)}}},
    ],
)
def test_the_problems_of_a_body_are_told_in_bounds(body: dict[str, object]) -> None:
    """Each is many times as long as what it is about: a body of a megabyte would get forty back."""
    with pytest.raises(InvalidDefinition) as caught:
        parse(body)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert len(json.dumps(error_json(caught.value))) < 128 * 1024
    assert "more errors are not shown" in caught.value.problems[-1].message
