# SPDX-License-Identifier: Apache-2.0
"""nftables: our tables go to the kernel by libnftables, in this process, one transaction a call.

Others' tables are read, to report to the administrator what blocks the VMs' traffic, and never changed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hypemand.errors import HostNotReady
from hypemand.network.rules import TABLE, Family

_log = logging.getLogger(__name__)
_ERROR_CHARACTERS = 600
_ABSENT_HINT = "install python3-nftables"
_FORBIDDEN_HINT = (
    "the network service needs CAP_NET_ADMIN, and tables named hypemand that no other program owns"
)


class RuleRefused(HostNotReady):
    """nftables did not take a transaction: nothing of it is in the kernel."""

    def __init__(self, told: str) -> None:
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        super().__init__(
            f"nftables rejected a rule: {' / '.join(lines)[:_ERROR_CHARACTERS]}",
            hint=_FORBIDDEN_HINT
            if os.strerror(errno.EPERM) in told
            else "does the kernel have nf_tables with nat, bridge and fib?",
        )


class Nftables:
    """libnftables. Raises HostNotReady when it is not installed."""

    def __init__(self) -> None:
        try:
            import nftables

            self._library = nftables.Nftables()
        except (ImportError, OSError) as error:
            raise HostNotReady(f"nftables is not available: {error}", hint=_ABSENT_HINT) from None

    def change(self, text: str) -> None:
        """All of `text` as one transaction. Raises RuleRefused; then nothing has changed."""
        if not text:
            return
        code, _, told = self._library.cmd(text)
        if code != 0:
            raise RuleRefused(told)

    def is_complete(self) -> bool:
        """Are both tables there? Whoever flushes the ruleset, as nftables.service does when it is reloaded,
        takes them away."""
        tables = {(table["family"], table["name"]) for table in self._list("tables", "table")}
        return all((str(family), TABLE) in tables for family in Family)

    def read_counted(self, kind: str, name: str) -> Iterator[tuple[str, int]]:
        """Packets by each element of a set or map (`kind`) of `inet hypemand` that counts them. Of a key of
        several parts: as nft writes it, without quotes."""
        for found in self._list(f"{kind} {Family.INET} {TABLE} {name}", kind):
            for entry in found.get("elem", ()):
                element = (entry[0] if kind == "map" else entry)["elem"]
                key = element["val"]
                words = " . ".join(key["concat"]) if isinstance(key, dict) else key
                yield words, element["counter"]["packets"]

    def find_forward_blocks(self, bridges: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """For each bridge, what other firewall drops what is forwarded from and to it, and the cure."""
        names = tuple(bridges)
        found: dict[str, list[str]] = {name: [] for name in names}
        for family, table, chain in self._find_dropping_chains():
            text = self._read_table(family, table)
            for name in names:
                if f'"{name}"' not in text:
                    found[name].append(_describe_block(family, table, chain, name))
        return {name: tuple(warnings) for name, warnings in found.items()}

    def _find_dropping_chains(self) -> Iterator[tuple[str, str, str]]:
        for chain in self._list("chains", "chain"):
            family, table, name = chain["family"], chain["table"], chain["name"]
            if table == TABLE or family not in ("ip", "ip6", "inet") or chain.get("hook") != "forward":
                continue
            # firewalld's policy is accept, and its last rule rejects
            if chain.get("policy") == "drop" or table == "firewalld":
                yield family, table, name

    def _read_table(self, family: str, table: str) -> str:
        code, output, _ = self._library.cmd(f"list table {family} {table}")
        return str(output) if code == 0 else ""

    def _list(self, what: str, kind: str) -> Iterator[Mapping[str, Any]]:
        self._library.set_json_output(True)
        try:
            code, output, told = self._library.cmd(f"list {what}")
        finally:
            self._library.set_json_output(False)
        if code != 0:
            raise RuleRefused(told)
        for entry in json.loads(output)["nftables"] if output else ():
            if kind in entry:
                yield entry[kind]


def _describe_block(family: str, table: str, chain: str, bridge: str) -> str:
    if table == "firewalld":
        return (
            f"firewalld rejects packets of VMs on {bridge} to other networks; "
            f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
        )
    if (table, chain) == ("filter", "FORWARD"):
        iptables = {"ip": "iptables", "ip6": "ip6tables"}.get(family, "iptables")
        cure = f"{iptables} -I FORWARD -i {bridge} -j ACCEPT && {iptables} -I FORWARD -o {bridge} -j ACCEPT"
    else:
        cure = " && ".join(
            f"nft insert rule {family} {table} {chain} {way} {bridge} accept"
            for way in ("iifname", "oifname")
        )
    return f"another firewall drops packets of VMs on {bridge}: {family} {table} {chain}; {cure}"
