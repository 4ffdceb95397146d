# SPDX-License-Identifier: Apache-2.0
"""Images for the API and for VMs: local images, pulls in progress, and their users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from hypemand.config.definition import ImagePull
from hypemand.config.tags import check_tags
from hypemand.errors import HypemandError, ImageNotReady, NotFound
from hypemand.manager.images.pulls import Pull, Pulls, PullView, end_work
from hypemand.model.images import Credentials, ImageInfo, Pruned, PullStatus
from hypemand.storage.exporter import export_image
from hypemand.storage.images import Image
from hypemand.storage.importer import import_image
from hypemand.storage.references import Transport, derive_digest_name, parse_image_name, parse_reference
from hypemand.storage.store import ImageStore, ImageUse
from hypemand.workers import Pool, run_in


class Images:
    """`in_use` gives what VMs need, `check_uses` raises if that cannot be all, and `on_freed` is called when
    images were removed. While `choosing` is held no image goes away."""

    def __init__(
        self,
        store: ImageStore,
        pulls: Pulls,
        in_use: Callable[[], Sequence[ImageUse]] = tuple,
        check_uses: Callable[[], None] = lambda: None,
        on_freed: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.pulls = pulls
        self._in_use = in_use
        self._check_uses = check_uses
        self._on_freed = on_freed
        self.choosing = asyncio.Lock()

    # for VMs

    async def find_for(self, name: str, digest: str) -> Image | None:
        """The image that a VM is started with: the content `digest` if the VM is pinned to one, else the
        local image of that name."""
        return await run_in(Pool.IMAGES, self._find_for, name, digest)

    def _find_for(self, name: str, digest: str) -> Image | None:
        image = self.store.find_content(digest)
        return self.store.find_image(name) if image is None else replace(image, name=name)

    async def get_for(self, name: str, digest: str) -> Image:
        """The same. Raises NotFound, and ImageNotReady for one that is being pulled."""
        image = await self.find_for(name, digest)
        if image is None:
            raise await self.refuse_missing(name)
        return image

    async def keep(self, image: Image) -> Image:
        """The same image, which is still there. To be called with `choosing` held."""
        if image.builtin:
            return image
        if await run_in(Pool.IMAGES, self.store.find_content, image.digest) is None:
            raise NotFound(f"the image {image.name} has been removed meanwhile", code="image_not_found")
        return image

    async def have(
        self, name: str, digest: str, pull: ImagePull, tell: Callable[[str], None] = lambda _: None
    ) -> Image:
        """The image that a VM is to be started with, pulled if that is wanted. `tell` hears what is waited
        for. Giving up to wait does not end the pull."""
        if pull is not ImagePull.ALWAYS:
            image = await self.find_for(name, digest)
            if image is not None:
                return image
        reference = parse_reference(name)
        if pull is ImagePull.NEVER or reference.transport is Transport.BUILTIN:
            raise await self.refuse_missing(name)
        if digest and pull is ImagePull.MISSING and reference.transport is Transport.REGISTRY:
            # it keeps to its content, which somebody has removed with force
            name = derive_digest_name(reference.name, digest)
        work = self.pulls.start(name)
        assert work.task is not None
        async for view in work.changes():
            tell(view.words)
        return replace(await asyncio.shield(work.task), name=name)

    async def have_within(self, seconds: float | None, name: str, pull: ImagePull) -> Image:
        """`have`, which waits for a pull so long, and then raises ImageNotReady; None: to its end."""
        try:
            async with asyncio.timeout(seconds):
                return await self.have(name, "", pull)
        except TimeoutError:
            pull_now = self.pulls.find(name)
            words = "" if pull_now is None else f": {pull_now.view.words}"
            raise ImageNotReady(
                f"the image {name} is not ready yet{words}",
                hint="repeat the request later; the pull continues",
            ) from None

    async def refuse_missing(self, name: str) -> HypemandError:
        """Why there is no image of that name."""
        pull = self.pulls.find(name)
        if pull is not None and not pull.view.status.is_settled:
            return ImageNotReady(f"the image {name} is not ready yet: {pull.view.words}", hint="wait for it")
        try:
            await run_in(Pool.IMAGES, self.store.get_image, name)
        except NotFound as error:
            return error
        return NotFound(f"there is no image {name}", code="image_not_found")

    # for the API

    async def list_images(self) -> Sequence[ImageInfo]:
        """All images by name, including pulls in progress. A pull that failed is listed by its name."""
        uses = self._in_use()
        found = {info.name: info for info in await run_in(Pool.IMAGES, self._list, uses)}
        for pull in self.pulls:
            if not pull.view.status.is_settled:
                found[pull.name] = _with_pull(found.get(pull.name), pull)
        return sorted(found.values(), key=lambda info: info.name)

    def _list(self, uses: Sequence[ImageUse]) -> list[ImageInfo]:
        return [self._info(image, uses) for image in self.store.list_images()]

    def _info(self, image: Image, uses: Sequence[ImageUse]) -> ImageInfo:
        return ImageInfo(
            name=image.name,
            status=PullStatus.READY,
            digest=image.digest,
            architecture=image.architecture,
            size=image.size,
            created_at=image.created_at,
            source=image.source,
            config=image.config,
            builtin=image.builtin,
            in_use_by=tuple(self.store.list_users(image, uses)),
            tags=image.tags,
        )

    async def get_image(self, name: str) -> ImageInfo:
        """One image, as far as it is. Raises NotFound."""
        uses = self._in_use()

        def look() -> ImageInfo | None:
            image = self.store.find_image(name)
            return None if image is None else self._info(image, uses)

        known = await run_in(Pool.IMAGES, look)
        pull = self.pulls.find(name)
        if pull is not None and (known is None or not pull.view.status.is_settled):
            return _with_pull(known, pull)
        if known is None:
            raise await self.refuse_missing(name)
        return known

    async def pull_image(
        self, name: str, credentials: Credentials | None = None, tags: Mapping[str, str] | None = None
    ) -> ImageInfo:
        """Start the pull of `name`, and return its state at once. InvalidRequest."""
        parse_reference(name)
        check_tags(tags or {})
        return _with_pull(None, self.pulls.start(name, credentials, tags))

    async def watch_image(self, name: str) -> AsyncIterator[ImageInfo]:
        """The image now, and at each change until it is there or has failed."""
        pull = self.pulls.find(name)
        if pull is None:
            yield await self.get_image(name)
            return
        async for view in pull.changes():
            yield await self._settled(pull, view)

    async def _settled(self, pull: Pull, view: PullView) -> ImageInfo:
        if view.status is not PullStatus.READY or pull.task is None:
            return _with_pull(None, pull, view)
        image = await asyncio.shield(pull.task)
        return await run_in(Pool.IMAGES, self._info, image, self._in_use())

    async def tag_image(self, name: str, target: str) -> ImageInfo:
        """One more name. Raises NotFound, InvalidRequest."""
        image = await run_in(Pool.IMAGES, self.store.tag_image, name, target)
        return await run_in(Pool.IMAGES, self._info, image, self._in_use())

    async def remove_image(self, name: str) -> None:
        """Remove an image; cancel its pull, if one is in progress. Raises NotFound, InUse, and HostNotReady
        while it is not known which images VMs need."""
        cancelled = await self.pulls.cancel(parse_image_name(name))
        if cancelled and await run_in(Pool.IMAGES, self.store.find_image, name) is None:
            return
        self._check_uses()
        async with self.choosing:
            await run_in(Pool.IMAGES, self.store.remove_image, name, self._in_use())
        self._on_freed()

    async def prune_images(self, *, every: bool, dry_run: bool) -> Sequence[Pruned]:
        """Remove images that no VM needs: those without a name, or `every` one; or only find them, without
        taking a lock. Raises HostNotReady while it is not known which images VMs need."""
        if dry_run:
            return await run_in(Pool.IMAGES, self.store.find_prunable, self._in_use(), every=every)
        self._check_uses()
        async with self.choosing:
            pruned = await run_in(Pool.IMAGES, self.store.prune, self._in_use(), every=every)
        self._on_freed()
        return pruned

    async def import_image(self, name: str, path: str) -> ImageInfo:
        """Make an image of what is at `path`."""
        tools = self.pulls.make_tools()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self.pulls.threads, import_image, self.store, name, path, tools)
        try:
            image = await asyncio.shield(work)
        except asyncio.CancelledError:
            await end_work(tools, work)
            raise
        return await run_in(Pool.IMAGES, self._info, image, self._in_use())

    @asynccontextmanager
    async def export_image(self, name: str) -> AsyncIterator[Path]:
        """An OCI archive of an image, which is there until the end of the block. Raises NotFound."""
        async with self.export_content(await run_in(Pool.IMAGES, self.store.get_image, name)) as path:
            yield path

    @asynccontextmanager
    async def export_content(self, image: Image) -> AsyncIterator[Path]:
        """The same of an image that is known."""
        tools = self.pulls.make_tools()
        loop = asyncio.get_running_loop()
        exported = export_image(self.store, image, tools)
        work = loop.run_in_executor(self.pulls.threads, exported.__enter__)
        try:
            path = await asyncio.shield(work)
        except asyncio.CancelledError:
            await end_work(tools, work)
            if work.exception() is None:
                await run_in(Pool.IMAGES, exported.__exit__, None, None, None)
            raise
        try:
            yield path
        finally:
            await run_in(Pool.IMAGES, exported.__exit__, None, None, None)


def _with_pull(known: ImageInfo | None, pull: Pull, view: PullView | None = None) -> ImageInfo:
    """What is known of an image, and how far its pull is: now, or as in `view`."""
    view = view or pull.view
    info = known or ImageInfo(view.name, view.status, created_at=view.started_at)
    return replace(
        info,
        status=view.status,
        error=view.error,
        error_code=view.error_code,
        progress=view.progress,
        tags=info.tags if pull.tags is None else pull.tags,
    )
