# SPDX-License-Identifier: Apache-2.0
"""The services behind the API: the manager, the guests, the image store, reload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hypemand.api.tokens import TokenStore
from hypemand.config.definition import DefinitionDefaults
from hypemand.config.netdef import Networks
from hypemand.errors import Problem
from hypemand.manager.imageview import Credentials, ImageInfo
from hypemand.manager.networkview import NetworkInfo
from hypemand.manager.space import SpaceReport
from hypemand.manager.view import CopyOut, GuestService, Manager, VolumeFill, VolumeView
from hypemand.storage.store import Pruned


class ImageService(Protocol):
    """The images of this host. Methods never block the event loop. InvalidRequest for what can be no name."""

    async def list_images(self) -> Sequence[ImageInfo]:
        """All images, by name, with those that are being had."""

    async def get_image(self, name: str) -> ImageInfo:
        """One image. Raises NotFound."""

    async def pull_image(self, name: str, credentials: Credentials | None = None) -> ImageInfo:
        """Begin to have what `name` stands for now, or join those who do; what is known at once."""

    def watch_image(self, name: str) -> AsyncIterator[ImageInfo]:
        """The image now, then at each change, until it is READY or FAILED."""

    async def tag_image(self, name: str, target: str) -> ImageInfo:
        """Give it one more name. Raises NotFound."""

    async def remove_image(self, name: str) -> None:
        """Remove it, or end its pull. Raises NotFound, InUse while a VM needs it."""

    async def prune_images(self, *, every: bool, dry_run: bool) -> Sequence[Pruned]:
        """Remove what has no name and no VM needs; `every`: with names too. `dry_run`: only tell."""

    async def import_image(self, name: str, path: str) -> ImageInfo:
        """Make an image of a directory, a tar archive or an OCI layout. Raises AlreadyExists,
        InvalidRequest for what is none of them."""

    def export_image(self, name: str) -> AbstractAsyncContextManager[Path]:
        """An OCI archive of it, which is there until the end of the block. Raises NotFound."""


class VolumeService(Protocol):
    """The volumes of this host. Methods never block the event loop. `ref`: a name, an id, or an unambiguous
    start of an id; raises NotFound and Ambiguous for it. Sizes in bytes."""

    async def list_volumes(self) -> Sequence[VolumeView]:
        """All volumes, by name."""

    async def get_volume(self, ref: str) -> VolumeView:
        """One volume."""

    async def create_volume(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None
    ) -> VolumeView:
        """An empty one. InvalidRequest, AlreadyExists, InsufficientResources."""

    async def remove_volume(self, ref: str) -> None:
        """Remove it with all that is in it. InUse while a VM is defined or runs with it."""

    async def resize_volume(self, ref: str, size: int) -> VolumeView:
        """Let it grow. InUse while a VM runs with it, InvalidRequest for less, InsufficientResources."""

    def fill_volume(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None
    ) -> AbstractAsyncContextManager[VolumeFill]:
        """A new volume that the block puts files into; there to be used at its end, and gone if it raises."""

    def read_volume(self, ref: str) -> AbstractAsyncContextManager[CopyOut]:
        """What is in it. InUse while a VM writes to it."""

    async def measure_space(self) -> SpaceReport:
        """What hypemand keeps on the host's disk."""


class NetworkService(Protocol):
    """The networks of this host."""

    async def list_networks(self) -> Sequence[NetworkInfo]:
        """All networks, by name."""

    async def get_network(self, name: str) -> NetworkInfo:
        """One network. NotFound."""


class ReloadReport(Protocol):
    """What a reload of the definition files has found: names of VMs, and what is wrong in files."""

    @property
    def defined(self) -> Sequence[str]: ...
    @property
    def changed(self) -> Sequence[str]: ...
    @property
    def removed(self) -> Sequence[str]: ...
    @property
    def problems(self) -> Sequence[Problem]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take, and how long. Seconds, but for the first four.

    `connections`: of all clients; `strangers`: of one address, without a request that was let in;
    `client_requests` and `address_requests`: under way, of one token or uid, and of one address;
    `first_request`: from the connection to the end of the first request's head; `keepalive`: between
    requests; `body`: for a request's body; `lingering`: for the rest of a body that was refused;
    `opening`: from the upgrade to what exec is to run; `closing`: for the other side to close a
    WebSocket that has done its work; `grace`: for requests that are on when the server ends;
    `accept_pause`: when no connection can be taken (no descriptors), until it is tried again; `heartbeat`:
    from one sign of life of a stream to the next.
    """

    connections: int = 256
    strangers: int = 64
    client_requests: int = 128
    address_requests: int = 192
    first_request: float = 10.0
    keepalive: float = 75.0
    body: float = 30.0
    lingering: float = 2.0
    opening: float = 10.0
    closing: float = 2.0
    grace: float = 5.0
    accept_pause: float = 0.5
    heartbeat: float = 30.0


@dataclass(frozen=True, slots=True)
class Services:
    """All that the API may ask. `defaults` and `networks` give those of the host config as it is now, the
    latter None where they are not known; `spool`: a folder of a filesystem that has room for a file that is
    on its way, and `reserve` the bytes that stay free there."""

    manager: Manager
    guests: GuestService
    images: ImageService
    tokens: TokenStore
    volumes: VolumeService
    host_networks: NetworkService
    reload: Callable[[], Awaitable[ReloadReport]]
    defaults: Callable[[], DefinitionDefaults] = DefinitionDefaults
    networks: Callable[[], Networks | None] = lambda: None
    spool: Path = Path("/var/tmp")
    reserve: Callable[[], int] = lambda: 0
