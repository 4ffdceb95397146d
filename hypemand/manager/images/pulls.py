# SPDX-License-Identifier: Apache-2.0
"""Image pulls in progress: one task per image, shared by all callers, with its progress."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hypemand.errors import HypemandError
from hypemand.model.events import Event, Tell, ignore_event
from hypemand.model.events import Pull as PullEvent
from hypemand.model.images import Credentials, Progress, PullStatus
from hypemand.storage.images import Image
from hypemand.storage.importer import Step, Told, make_image
from hypemand.storage.references import parse_reference
from hypemand.storage.registry import PullFailed
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import RegistryAuth, Tools
from hypemand.tasks import Tasks
from hypemand.vm.changes import Changes
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
AUTH_FILE = Path("/etc/hypemand/auth.json")
_AT_ONCE = 4
_LOOK = 0.2
# a registry that sends nothing for so long will not send anything
_STALL = 90.0
# and one that sends less than this in that time holds no place that another image waits for: 34 KiB a second
_SLOW_BYTES = 3 * 1024 * 1024
_KEPT_FAILURES = 64
_TELL_AGAIN = 2.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PullView:
    """A picture of a pull."""

    name: str
    status: PullStatus
    progress: Progress
    error: str
    error_code: str
    started_at: float

    @property
    def words(self) -> str:
        """For people: what is done now."""
        done = self.progress
        if self.status is not PullStatus.PULLING or not done.total_bytes:
            return f"{_WORDS[self.status]} {self.name}"
        share = f"{done.bytes / 1e6:.1f} of {done.total_bytes / 1e6:.1f} MB"
        return f"pulling {self.name}: {share}, {done.layers} of {done.total_layers} layers"


_WORDS = {
    PullStatus.PENDING: "asking for",
    PullStatus.PULLING: "pulling",
    PullStatus.CONVERTING: "unpacking",
    PullStatus.READY: "got",
    PullStatus.FAILED: "cannot pull",
}


async def end_work(tools: Tools, work: asyncio.Future[T]) -> None:
    """Cancel work, and wait for its end. The request is repeated: a unit may be about to start at the
    first."""
    while not work.done():
        await run_in(Pool.TOOLS, tools.cancel)
        await asyncio.wait([work], timeout=_TELL_AGAIN)


class Pull:
    """One image that is being had. `result` is the image, or the failure."""

    def __init__(self, name: str, tools: Tools, tags: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.tools = tools
        self.tags = tags
        self.task: asyncio.Task[Image] | None = None
        self.failure: HypemandError | None = None
        self._view = PullView(name, PullStatus.PENDING, Progress(), "", "", time.time())
        self._changes = Changes()
        self._layout: Path | None = None

    @property
    def view(self) -> PullView:
        """How it is now."""
        return self._view

    def show(self, **changes: object) -> None:
        """Take a new picture, and tell those who watch if it is another one."""
        view = replace(self._view, **changes)  # type: ignore[arg-type]
        if view != self._view:
            self._view = view
            self._changes.tell()

    def take(self, told: Told) -> None:
        """Progress of the import."""
        progress = self._view.progress
        if told.manifest is not None:
            total, layers = told.manifest.size, len({layer.digest for layer in told.manifest.layers})
            done = told.step is Step.CONVERTING
            progress = Progress(total if done else 0, total, layers if done else 0, layers)
        self._layout = told.layout
        self.show(status=PullStatus(told.step), progress=progress)

    async def measure(self) -> None:
        """Look how much has come."""
        if self._layout is None or self._view.status is not PullStatus.PULLING:
            return
        total = self._view.progress
        size, layers = await run_in(Pool.IMAGES, _count_blobs, self._layout)
        self.show(
            progress=replace(
                total, bytes=min(size, total.total_bytes), layers=min(layers, total.total_layers)
            )
        )

    async def changes(self) -> AsyncIterator[PullView]:
        """Its picture now and at each change, until it is settled."""
        with self._changes.watching() as changed:
            while True:
                changed.clear()
                view = self._view
                yield view
                if view.status.is_settled:
                    return
                await changed.wait()


def _count_blobs(layout: Path) -> tuple[int, int]:
    """Bytes of what skopeo has written into a layout, and how many blobs are whole."""
    size = whole = 0
    for folder, is_whole in ((layout, False), (layout / "blobs/sha256", True)):
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and entry.name not in ("oci-layout", "index.json"):
                    with suppress(OSError):
                        size += entry.stat(follow_symlinks=False).st_size
                        whole += is_whole
    return size, whole


class Pace:
    """The speed of a pull, from repeated samples. `now`: seconds of a monotonic clock."""

    def __init__(self, now: float) -> None:
        self._since = self._moved_at = now
        self._began = self._last = 0

    def judge(self, came: int | None, now: float, *, others_wait: bool) -> str:
        """Why the pull is to be ended, or "". `came`: bytes so far, None while nothing is to come."""
        if came is None:
            self._since = self._moved_at = now
            return ""
        if came != self._last:
            self._last, self._moved_at = came, now
        if now - self._moved_at > _STALL:
            return f"nothing for {_STALL:g} s"
        if now - self._since <= _STALL:
            return ""
        got, self._began, self._since = came - self._began, came, now
        if others_wait and got < _SLOW_BYTES:
            return f"{got} bytes in {_STALL:g} s, and other pulls are waiting"
        return ""


class Pulls:
    """All images that are being had. `make_tools` gives those for one piece of work; `scratch` is a folder in
    memory, for credentials; `tell_event` is called with each event."""

    def __init__(
        self,
        store: ImageStore,
        make_tools: Callable[[], Tools],
        scratch: Path,
        auth_file: Path = AUTH_FILE,
        tell_event: Tell = ignore_event,
    ) -> None:
        self._tell_event = tell_event
        self._store = store
        self.make_tools = make_tools
        self._scratch = scratch
        self._auth_file = auth_file
        self._pulls: dict[str, Pull] = {}
        # Their own threads: a pull takes minutes, and starts of VMs wait for none.
        self.threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="image")
        # pulls that have no thread yet, or wait for another one of the same content
        self._waiting: set[str] = set()
        self._tasks = Tasks("images")

    def find(self, name: str) -> Pull | None:
        """The pull of that name that is on, or that failed last."""
        pull = self._pulls.get(name)
        return pull or self._pulls.get(parse_reference(name).name)

    def __iter__(self) -> Iterator[Pull]:
        return iter(list(self._pulls.values()))

    def start(
        self, name: str, credentials: Credentials | None = None, tags: Mapping[str, str] | None = None
    ) -> Pull:
        """Start the pull of `name`, or join one that is in progress. `tags`: those that the name gets with
        the image; None: it keeps its own."""
        name = parse_reference(name).name
        pull = self._pulls.get(name)
        if pull is not None and not pull.view.status.is_settled:
            pull.tags = pull.tags if tags is None else tags
            return pull
        self._forget_failures()
        pull = self._pulls[name] = Pull(name, self.make_tools(), tags)
        pull.task = self._tasks.start(f"pull of {name}", self._run(pull, credentials), awaited=True)
        pull.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return pull

    async def get(self, name: str) -> Image:
        """Have the image, and wait for that. Giving up to wait does not end the pull."""
        pull = self.start(name)
        assert pull.task is not None
        return await asyncio.shield(pull.task)

    async def cancel(self, name: str) -> bool:
        """End a pull, or forget that it failed. False: there is none."""
        pull = self.find(name)
        if pull is None or pull.task is None or pull.view.status is PullStatus.READY:
            return False
        await end_work(pull.tools, pull.task)
        self._pulls.pop(pull.name, None)
        return True

    async def close(self) -> None:
        """End all pulls: nothing of them stays."""
        running = [pull for pull in self if pull.task is not None and not pull.task.done()]
        await asyncio.gather(*(self.cancel(pull.name) for pull in running))
        await self._tasks.close()
        self.threads.shutdown(wait=False)

    async def _run(self, pull: Pull, credentials: Credentials | None) -> Image:
        loop = asyncio.get_running_loop()

        def tell(told: Told) -> None:
            loop.call_soon_threadsafe(pull.take, told)

        def wait(is_waiting: bool) -> None:
            change = self._waiting.add if is_waiting else self._waiting.discard
            loop.call_soon_threadsafe(change, pull.name)

        def make() -> Image:
            wait(False)
            with self._auth(pull.name, credentials) as auth:
                image = make_image(self._store, pull.name, pull.tools, tell=tell, waits=wait, auth=auth)
            if pull.tags is not None:
                self._store.set_tags(pull.name, pull.tags)
                image = replace(image, tags=pull.tags)
            return image

        began = time.monotonic()
        self._tell(pull, f"pull of image {pull.name} has begun")
        self._waiting.add(pull.name)
        work = loop.run_in_executor(self.threads, make)
        try:
            await self._look_on(pull, work)
            image = await work
        except Exception as error:
            known = error if isinstance(error, HypemandError) else HypemandError(str(error))
            failure = pull.failure or known
            _log.warning("image %s: %s", pull.name, failure)
            pull.failure = failure
            pull.show(status=PullStatus.FAILED, error=str(failure), error_code=failure.code)
            self._tell(pull, f"image {pull.name}: {failure}", time.monotonic() - began)
            raise failure from error
        _log.info("image %s is %s", pull.name, image.digest)
        pull.show(status=PullStatus.READY)
        self._tell(pull, f"image {pull.name} is {image.digest}", time.monotonic() - began)
        self._pulls.pop(pull.name, None)
        return image

    def _tell(self, pull: Pull, message: str, seconds: float | None = None) -> None:
        self._tell_event(Event(PullEvent(pull.name, pull.view.status, seconds), message))

    async def _look_on(self, pull: Pull, work: asyncio.Future[Image]) -> None:
        """Follow the progress until the work is over. One to which nothing comes any more is ended; so is one
        to which little comes while others wait for its place."""
        pace = Pace(time.monotonic())
        while not (await asyncio.wait([work], timeout=_LOOK))[0]:
            await pull.measure()
            is_pulling = pull.view.status is PullStatus.PULLING
            came = pull.view.progress.bytes if is_pulling else None
            why = pace.judge(came, time.monotonic(), others_wait=bool(self._waiting))
            if why:
                pull.failure = PullFailed(f"{pull.name}: the registry has sent {why}")
                await end_work(pull.tools, work)
                return

    def _forget_failures(self) -> None:
        failed = [pull.name for pull in self if pull.view.status is PullStatus.FAILED]
        for name in failed[: max(0, len(failed) - _KEPT_FAILURES + 1)]:
            del self._pulls[name]

    @contextmanager
    def _auth(self, name: str, given: Credentials | None) -> Iterator[RegistryAuth | None]:
        """The file with the registry credentials: the host's, or one in memory for this pull."""
        if given is None:
            yield RegistryAuth(self._auth_file) if self._auth_file.exists() else None
            return
        path = self._scratch / f"auth-{secrets.token_hex(8)}.json"
        word = b64encode(f"{given.username}:{given.password}".encode()).decode()
        document = {"auths": {name.partition("/")[0]: {"auth": word}}}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(given.token or json.dumps(document))
            yield RegistryAuth(path, is_token=bool(given.token))
        finally:
            path.unlink(missing_ok=True)
