# SPDX-License-Identifier: Apache-2.0
"""The key `network` of a definition: plain values to a NetworkUse and back, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hypemand.config.addresses import find_misfit, suggest_address
from hypemand.config.eui64 import PREFIX_LENGTH
from hypemand.config.netparse import (
    MAX_PUBLISHED,
    NONE,
    format_egress,
    format_publish,
    parse_address4,
    parse_address6,
    parse_egress,
    parse_mac,
    parse_publish,
)
from hypemand.config.network import Bandwidth, NetworkConfig, NetworkUse, Publish
from hypemand.config.rates import format_rate, parse_rate
from hypemand.config.source import Source
from hypemand.errors import Problem

Networks = Mapping[str, NetworkConfig]


def make_network_use(data: Any, default: str | None) -> NetworkUse | None:
    """The value of `network`, which has no problems. `data` None: it is not there; `default`: the name of the
    network of those that name none."""
    if data is None:
        return None if default is None else NetworkUse(default)
    if isinstance(data, str):
        return None if data == NONE else NetworkUse(data)
    values: dict[str, Any] = {"name": default}
    for key, value in data.items():
        match key:
            case "address":
                values[key] = parse_address4(value)
            case "address6":
                values[key] = parse_address6(value)
            case "mac":
                values[key] = parse_mac(value)
            case "publish":
                values[key] = tuple(one for text in value for one in parse_publish(text))
            case "connections":
                values[key] = int(value)
            case "egress":
                values[key] = tuple(parse_egress(text) for text in value)
            case "bandwidth":
                values[key] = Bandwidth(**{way: parse_rate(rate) for way, rate in value.items()})
            case _:
                values[key] = value
    return NetworkUse(**values)


def network_use_to_json(use: NetworkUse | None) -> object:
    """As make_network_use reads it: `none`, a name, or a mapping of what is said."""
    if use is None:
        return NONE
    if use == NetworkUse(use.name):
        return use.name
    result: dict[str, object] = {"name": use.name}
    if use.address is not None:
        result["address"] = str(use.address)
    if use.address6 is not None:
        result["address6"] = str(use.address6)
    if use.mac is not None:
        result["mac"] = use.mac
    if use.publish:
        result["publish"] = [format_publish(one) for one in use.publish]
    rates = {"upload": use.bandwidth.upload, "download": use.bandwidth.download}
    if limits := {way: format_rate(rate) for way, rate in rates.items() if rate is not None}:
        result["bandwidth"] = limits
    if use.group is not None:
        result["group"] = use.group
    if use.isolate is not None:
        result["isolate"] = use.isolate
    if use.connections is not None:
        result["connections"] = use.connections
    if use.egress is not None:
        result["egress"] = [format_egress(one) for one in use.egress]
    return result


def find_publish_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """Ports that are published twice, or too many of them. Passes over what cannot be read."""
    network = data.get("network")
    texts = network.get("publish") if isinstance(network, Mapping) else None
    total = 0
    seen: dict[tuple[str, int], list[tuple[Publish, int]]] = {}
    for i, text in enumerate(texts if isinstance(texts, list) else []):
        for one in _try_publish(text):
            total += 1
            others = seen.setdefault((one.transport, one.host_port), [])
            first = next((n for other, n in others if one.clashes_with(other)), None)
            others.append((one, i))
            if first is not None:
                what = f"publishes {one.host_port}/{one.transport}, which publish[{first}] already does"
                yield source.problem(("network", "publish", i), what, "write each host port once")
                break
    if total > MAX_PUBLISHED:
        what = f"publishes {total} ports"
        yield source.problem(
            ("network", "publish"), what, f"write at most {MAX_PUBLISHED}, including all ports of ranges"
        )


def _try_publish(text: object) -> tuple[Publish, ...]:
    try:
        return parse_publish(text) if isinstance(text, str) else ()
    except ValueError:
        return ()


def find_network_problems(
    source: Source, data: Any, default: str | None, networks: Networks | None
) -> Iterator[Problem]:
    """What is wrong with `network`, which can be read, on a host with these networks; None: not known."""
    said = isinstance(data, str) or "name" in data
    name = data if isinstance(data, str) else data.get("name", default)
    place = ("network", "name") if isinstance(data, Mapping) and said else ("network",)
    if name is None:
        what = "has no name, and the host configuration has no default network"
        yield source.problem(place, what, "write name: with a network of the host, or network: none")
    # not where networks are not known: what is on disk as the record of a VM may say both
    if networks is not None and isinstance(data, Mapping) and {"group", "isolate"} <= data.keys():
        what = "cannot be combined with group"
        yield source.problem(("network", "isolate"), what, "remove one of them")
    if name is None or networks is None or (isinstance(data, str) and name == NONE):
        return
    network = networks.get(name)
    if network is None:
        none = f"network: {NONE}" if "name" in place else NONE
        hint = f"write {_join([*sorted(networks), none])}, or add it to networks in the host configuration"
        yield source.problem(place, f"{name} is not a network of this host", hint)
        return
    use = make_network_use(data, default)
    assert use is not None
    for key, what, hint in find_lan_misfits(use, network):
        at = ("network", key) if isinstance(data, Mapping) else ("network",)
        yield source.problem(at, what if len(at) > 1 else f"{key} {what}", hint)
    if isinstance(data, Mapping):
        yield from _find_misfits(source, use, network)


def find_lan_misfits(use: NetworkUse, network: NetworkConfig) -> Iterator[tuple[str, str, str]]:
    """Which settings of a VM are not possible on a bridge that is not hypemand's, and which are missing: the
    key, what is wrong, and the cure."""
    if network.managed:
        return
    if use.publish:
        what = f"is not possible on network {network.name}: its VMs are reached under their own addresses"
        yield "publish", what, "remove it, or name another network"
    if use.egress is not None:
        what = f"is not possible on network {network.name}, whose packets pass no firewall of this host"
        yield "egress", what, "remove it, or name another network"
    if network.dhcp:
        return
    for key, address, gateway in (
        ("address", use.address, network.ipv4),
        # that of its MAC address, as others on the LAN give it to themselves
        ("address6", use.address6, None if _has_room(network) else network.ipv6),
    ):
        if gateway is not None and address is None:
            what = f"is missing: hypemand does not know which addresses of network {network.name} are free"
            yield key, what, suggest_address(gateway, chosen=False)


def _has_room(network: NetworkConfig) -> bool:
    return network.ipv6 is not None and network.ipv6.network.prefixlen <= PREFIX_LENGTH


def _find_misfits(source: Source, use: NetworkUse, network: NetworkConfig) -> Iterator[Problem]:
    """Which settings of a VM its network cannot satisfy."""
    for key, address, gateway in (
        ("address", use.address, network.ipv4),
        ("address6", use.address6, network.ipv6),
    ):
        if address is None:
            continue
        if what := find_misfit(address, gateway, network.name):
            hint = suggest_address(gateway, chosen=network.managed or network.dhcp)
            yield source.problem(("network", key), f"{address} {what}", hint)
    for i, text in enumerate(source.data["network"].get("publish", [])):  # type: ignore[index]
        (one, *_) = parse_publish(text)
        if one.address is None:
            continue
        if (network.ipv4 if one.address.version == 4 else network.ipv6) is None:
            what = f"is of IPv{one.address.version}, which network {network.name} has not"
            yield source.problem(
                ("network", "publish", i), what, "write an address of the other family, or none"
            )


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
