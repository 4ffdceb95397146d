# SPDX-License-Identifier: Apache-2.0
"""Where test hosts come from: bare ones, and ones with our packages already installed.

Installing takes several times as long as booting, so it is done once for each set of packages; its
result is kept in the cache as a layer that other hosts start from.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from tests.host.cache import lock_file, try_lock
from tests.host.leftovers import HostDirectory, remove_leftovers
from tests.host.machine import TestHost
from tests.host.recipe import Suite, cluster_recipe
from tests.host.roots import ROOTS, ensure_base, ensure_root

DIST = Path(__file__).parents[2] / "dist"
PACKAGES = ("hypemand", "hypemand-guest", "hypemand-kernel", "libnss-hypemand")
# those for a node of a cluster, whose root has what they depend on
NODE_PACKAGES = (*PACKAGES, "hypemand-pacemaker")

# What must be made anew in each host rather than come with the layer.
OF_ONE_HOST = ("etc/machine-id", "var/log/journal", "var/lib/systemd/random-seed")


@contextmanager
def start_host(
    suite: Suite, *, installed: bool = True, binds: Sequence[str] = (), dist: Path = DIST
) -> Iterator[TestHost]:
    """A booted host of its own, gone after the block; with our packages from `dist` if `installed`."""
    with boot_hosts([suite], installed=installed, binds=binds, dist=dist) as (host,):
        yield host


@contextmanager
def boot_hosts(
    suites: Sequence[Suite],
    *,
    installed: bool = True,
    nodes: bool = False,
    binds: Sequence[str] = (),
    dist: Path = DIST,
) -> Iterator[tuple[TestHost, ...]]:
    """Several hosts, booted side by side; `nodes`: with what nodes of a cluster have."""
    sweep()
    with ExitStack() as stack:
        hosts = []
        for suite in suites:
            layers = stack.enter_context(_use_layers(suite, dist if installed else None, nodes=nodes))
            host = TestHost(HostDirectory.make(suite), layers, binds=binds)
            stack.callback(host.close)
            host.launch()
            hosts.append(host)
        for host in hosts:
            host.wait_booted()
        yield tuple(hosts)


@cache
def sweep() -> None:
    """Once in a process: remove what killed test runs left."""
    remove_leftovers()


def find_packages(dist: Path = DIST, packages: Sequence[str] = PACKAGES) -> list[Path]:
    """Our packages in a folder, one file each."""
    found = []
    for package in packages:
        files = sorted(dist.glob(f"{package}_*.deb"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"{dist}: {len(files)} files {package}_*.deb, expected one; run: make deb"
            )
        found.append(files[0])
    return found


@contextmanager
def _use_layers(suite: Suite, dist: Path | None, *, nodes: bool) -> Iterator[list[Path]]:
    """The roots to start a host from, with the packages of `dist`; no other process removes them as long as
    the block lasts."""
    base = ensure_root(cluster_recipe(suite)) if nodes else ensure_base(suite)
    if dist is None:
        yield [base]
        return
    debs = find_packages(dist, NODE_PACKAGES if nodes else PACKAGES)
    name = f"{base.name}-with-{_hash_files(debs)}"
    layer = ROOTS / name
    in_use = layer.with_suffix(".in-use")
    with lock_file(in_use, shared=True):
        with lock_file(ROOTS / f"{suite}.lock"):
            if not layer.is_dir():
                _remove_old_layers(base, keep=name)
                _install_layer(suite, base, debs, layer)
        yield [layer, base]


def _install_layer(suite: Suite, base: Path, debs: Sequence[Path], layer: Path) -> None:
    directory = HostDirectory.make(f"{suite}-install")
    host = TestHost(directory, [base])
    try:
        host.start()
        host.install(debs)
        host.stop()
        for name in OF_ONE_HOST:
            _remove(directory.upper / name)
        directory.upper.rename(layer)
    finally:
        host.close()


def _remove_old_layers(base: Path, *, keep: str) -> None:
    """Remove the layers of other builds that no host uses now."""
    for layer in ROOTS.glob(f"{base.name}-with-*"):
        if not layer.is_dir() or layer.name == keep:
            continue
        lock = try_lock(layer.with_suffix(".in-use"))
        if lock is not None:
            # its lock file stays: another process may wait on it
            shutil.rmtree(layer)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
