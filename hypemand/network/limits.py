# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits by tc(8).

What goes to a VM leaves the host by its TAP device and is held back there. What comes from it comes in, where
nothing can be held back: it makes a detour over an ifb device of its own, which it leaves again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from hypemand.config.network import Bandwidth
from hypemand.errors import HostNotReady
from hypemand.network.links import IFB_ALIAS, IFB_PREFIX, Link, Links

_INGRESS = 0xFFFF0000
_ROOT = 0x10000
_ALL_PROTOCOLS = 0x0003
# bytes/s: what the 32 bits of tc hold, 34 Gbit/s; and where a frame takes so long that nothing works any more
_FASTEST, _SLOWEST = 2**32 - 1, 1000
# A bucket of 25 ms, and at least some packets: so small that a transfer keeps to the limit from its start,
# and so large that it does on a busy host, whose timers are late.
_BURST_SECONDS = 0.025
_SMALLEST_BURST = 8 * 1024
# What waits before packets are dropped: a transfer needs some of it to get to the limit, and it is the delay
# that a full line has.
_QUEUE_SECONDS = 0.1
_SMALLEST_QUEUE = 64 * 1024


def ifb_name(uid: int) -> str:
    """The ifb device of a VM's upload, beside `hypemand.network.port.tap_name`."""
    return f"{IFB_PREFIX}{uid}"


@dataclass(frozen=True, slots=True)
class Present:
    """The state of the host: devices by their names, the kinds of their qdiscs by their indexes."""

    links: Mapping[str, Link]
    qdiscs: Mapping[int, frozenset[str]]


class Limits:
    """Limits of TAP devices. None of them outlives its device: those of download go with the TAP device, and
    an ifb device without its TAP device is found by its name."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def set(self, tap: int, uid: int, vm: str, mtu: int, bandwidth: Bandwidth) -> None:
        """Limit a TAP device that has no limits yet. Raises HostNotReady on a kernel without tbf or ifb."""
        try:
            if bandwidth.download is not None:
                self._add_bucket(tap, bandwidth.download, mtu)
            if bandwidth.upload is not None:
                self._limit_upload(tap, uid, vm, mtu, bandwidth.upload)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            raise HostNotReady(
                f"the kernel cannot limit bandwidth: {error}",
                hint="this requires sch_tbf, sch_ingress, cls_u32, act_mirred and ifb; or remove bandwidth",
            ) from None

    def mend(self, tap: int, uid: int, vm: str, mtu: int, bandwidth: Bandwidth, present: Present) -> None:
        """Set the limits of a TAP device anew if one of them is not there."""
        qdiscs = present.qdiscs.get(tap, frozenset())
        ifb = present.links.get(ifb_name(uid))
        shaped = ifb is not None and "tbf" in present.qdiscs.get(ifb.index, ())
        upload = "ingress" in qdiscs and shaped
        if ("tbf" in qdiscs, upload) == (bandwidth.download is not None, bandwidth.upload is not None):
            return
        for kind in qdiscs & {"tbf", "ingress"}:
            self._links.delete_qdisc(kind, tap)
        self.remove(uid)
        self.set(tap, uid, vm, mtu, bandwidth)

    def remove(self, uid: int) -> None:
        """Remove what does not go with the TAP device."""
        self._links.delete_ours(ifb_name(uid))

    def _limit_upload(self, tap: int, uid: int, vm: str, mtu: int, rate: int) -> None:
        ifb = self._links.add_ifb(ifb_name(uid), f"{IFB_ALIAS}{vm}", mtu)
        self._add_bucket(ifb, rate, mtu)
        self._links.tc("add", "ingress", tap)
        self._links.tc(
            "add-filter",
            "u32",
            tap,
            parent=_INGRESS,
            protocol=_ALL_PROTOCOLS,
            prio=1,
            target=_ROOT,
            keys=["0x0/0x0+0"],
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb},
        )

    def _add_bucket(self, index: int, rate: int, mtu: int) -> None:
        self._links.tc("add", "tbf", index, **derive_bucket(rate, mtu))


def derive_bucket(rate: int, mtu: int) -> dict[str, Any]:
    """Parameters of tbf for `rate` bytes/s. A frame that is larger than the bucket would never leave."""
    rate = min(max(rate, _SLOWEST), _FASTEST)
    burst = max(int(rate * _BURST_SECONDS), _SMALLEST_BURST, 2 * (mtu + 18))
    queue = max(int(rate * _QUEUE_SECONDS), _SMALLEST_QUEUE)
    return {"rate": rate, "burst": min(burst, 2**31 - 1), "limit": min(burst + queue, 2**32 - 1)}
