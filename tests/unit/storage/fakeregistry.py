# SPDX-License-Identifier: Apache-2.0
"""A registry in memory behind the seam of the tools: it answers skopeo's questions from OCI layouts."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from hypemand.errors import WrongState
from hypemand.run import CommandFailed, Completed, run
from hypemand.storage.tools import DirectTools, RegistryAuth

_REF_NAME = "org.opencontainers.image.ref.name"


class FakeRegistry(DirectTools):
    """`tags` are manifests, or indexes, by full reference. `asked`: each question, as its last words.
    `gate`: copies wait until it is set, or the work is cancelled. `arrived`: released for each
    question about a tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failure = ""
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.cancelled = threading.Event()
        self.credentials: list[str] = []
        self._layouts: dict[str, Path] = {}

    def push(self, reference: str, layout: Path, tag: str) -> str:
        """Have a reference stand for an image of a layout; its digest."""
        index = json.loads((layout / "index.json").read_text())
        found = next(d["digest"] for d in index["manifests"] if d["annotations"][_REF_NAME] == tag)
        digest = str(found)
        for blob in (layout / "blobs/sha256").iterdir():
            if blob.stat().st_size < 65536:
                self.blobs[f"sha256:{blob.name}"] = blob.read_bytes()
        self.tags[reference] = self.blobs[digest]
        self._layouts[digest] = layout
        return digest

    def push_index(self, reference: str, manifests: Sequence[tuple[str, str]]) -> str:
        """Have a reference stand for an index of (digest, architecture)."""
        there = [{"digest": d, "platform": {"os": "linux", "architecture": a}} for d, a in manifests]
        raw = json.dumps({"schemaVersion": 2, "manifests": there}).encode()
        self.tags[reference] = raw
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"

    def cancel(self) -> None:
        """As of tools for one piece of work."""
        self.cancelled.set()
        self.gate.set()

    def check(self) -> None:
        """Has it been?"""
        if self.cancelled.is_set():
            raise WrongState("this was cancelled")

    def fetch(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        auth: RegistryAuth | None = None,
        token_option: str = "",
    ) -> Completed:
        """What skopeo would have said."""
        if auth is not None:
            self.credentials.append(f"{token_option if auth.is_token else ''}{auth.path.read_text()}")
        if self.failure:
            self._fail(argv, self.failure)
        copies = "copy" in argv
        reference = next(word for word in argv if word.startswith("docker://")).removeprefix("docker://")
        self.asked.append(f"{'copy' if copies else 'inspect'} {reference}")
        if copies:
            self._copy(argv, reference)
            return Completed(tuple(argv), 0, b"", "", 0.0)
        if reference in self.tags:
            self.arrived.release()
        raw = self.tags.get(reference) or self.blobs.get(reference.partition("@")[2])
        if raw is None:
            self._fail(argv, "manifest unknown")
            raise AssertionError
        if "--config" in argv:
            raw = self.blobs[json.loads(raw)["config"]["digest"]]
        return Completed(tuple(argv), 0, raw, "", 0.0)

    def _copy(self, argv: Sequence[str], reference: str) -> None:
        digest = reference.partition("@")[2]
        target = Path(argv[-1].removeprefix("oci:").rpartition(":")[0])
        target.mkdir()
        (target / "oci-put-blob1").write_bytes(bytes(1000))
        self.gate.wait(30)
        if self.cancelled.is_set():
            self._fail(argv, "killed")
        shutil.rmtree(target)
        source = self._layouts[digest]
        tags = json.loads((source / "index.json").read_text())["manifests"]
        tag = next(d for d in tags if d["digest"] == digest)["annotations"][
            "org.opencontainers.image.ref.name"
        ]
        run(["skopeo", "--insecure-policy", "copy", "-q", f"oci:{source}:{tag}", argv[-1]], timeout=60)

    def _fail(self, argv: Sequence[str], words: str) -> None:
        said = f'time="now" level=fatal msg="{words}"\n'
        raise CommandFailed(Completed(tuple(argv), 1, b"", said, 0.0))
