# SPDX-License-Identifier: Apache-2.0
"""port: the ports of the host that lead to a VM."""

from __future__ import annotations

from collections.abc import Iterator

from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import get_instance
from hypemand.config.netparse import parse_publish
from hypemand.config.network import Publish, Transport
from hypemand.errors import InvalidRequest, NotFound
from hypemand.model.answers.instance import Instance


def list_ports(context: Context) -> int:
    """A line for each port and address, as docker(1) has them; of one port, the addresses alone."""
    wanted = None if context.args.port is None else parse_port(context.args.port)
    instance = get_instance(context.client, context.args.name)
    ports = [
        port for port in _list_published(instance) if wanted in (None, (port.guest_port, port.transport))
    ]
    if wanted is not None and not ports:
        raise NotFound(
            f"port {wanted[0]}/{wanted[1]} of {instance.name} is not published",
            hint=f"see: hypemanctl port {instance.name}",
        )
    if context.wants_document:
        context.print_document([_to_document(port) for port in ports])
        return ExitCode.OK
    for port in ports:
        for address in _list_addresses(instance, port):
            print(address if wanted else f"{port.guest_port}/{port.transport} -> {address}")
    return ExitCode.OK


def parse_port(text: str) -> tuple[int, Transport]:
    """`80` or `53/udp`. Raises InvalidRequest."""
    number, slash, transport = text.partition("/")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 5
    if not is_number or (slash and transport not in tuple(Transport)):
        raise InvalidRequest(f"not a port: {text!r}", hint="write 80 or 53/udp")
    return int(number), Transport(transport) if slash else Transport.TCP


def _list_published(instance: Instance) -> list[Publish]:
    """Those that lead to it now, by its own port."""
    network = instance.network
    texts = network.publish if network is not None and network.interface else ()
    ports = [port for text in texts for port in parse_publish(text)]
    return sorted(ports, key=lambda port: (port.guest_port, port.transport, port.host_port))


def _list_addresses(instance: Instance, port: Publish) -> Iterator[str]:
    """Where the host takes connections. On all addresses: those of the families that the VM has."""
    if port.address is not None:
        yield port.where.removesuffix(f"/{port.transport}")
        return
    network = instance.network
    if network is not None and network.ip:
        yield f"0.0.0.0:{port.host_port}"
    if network is not None and network.ip6:
        yield f"[::]:{port.host_port}"


def _to_document(port: Publish) -> dict[str, object]:
    """`address` null: all of the host."""
    return {
        "port": port.guest_port,
        "transport": str(port.transport),
        "address": None if port.address is None else str(port.address),
        "host_port": port.host_port,
    }
