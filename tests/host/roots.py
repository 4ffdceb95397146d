# SPDX-License-Identifier: Apache-2.0
"""Roots: directories with a minimal Debian, for test hosts with what our packages depend on, for guests with
little more than systemd.

They are built once and kept in the cache under the hash of their recipe, and only ever read: a test
host is an overlay on one, an image is a copy.

`python -m tests.host.roots SUITE...` builds what the tests of these releases need, before they run.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.host.cache import CACHE, lock_file
from tests.host.command import ENVIRONMENT, run_command
from tests.host.mirror import KEYRING, find_archives, read_acquire_settings
from tests.host.recipe import Recipe, Suite, cluster_recipe, guest_recipe

ROOTS = CACHE / "roots"
DEBS = CACHE / "debs"
BUILD_TIMEOUT = 1800.0
# what one takes on two cores
MINUTES = 2
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def ensure_base(suite: Suite) -> Path:
    """The base root of the hosts of `suite`."""
    return ensure_root(Recipe(suite))


def ensure_root(recipe: Recipe) -> Path:
    """The root that a recipe makes, built if it is not in the cache. Several processes may ask at once."""
    root = ROOTS / recipe.key
    if root.is_dir():
        return root
    with lock_file(ROOTS / f"{recipe.suite}.lock"):
        if not root.is_dir():
            for leftover in ROOTS.glob(f".build-{recipe.suite}-*"):
                shutil.rmtree(leftover)
            building = Path(tempfile.mkdtemp(prefix=f".build-{recipe.suite}-", dir=ROOTS))
            building.chmod(0o755)
            print(f"building {recipe.title}, once, about {MINUTES} minutes ...", file=sys.stderr, flush=True)
            try:
                _build_base(recipe, building)
                building.rename(root)
            except BaseException:
                shutil.rmtree(building)
                raise
    return root


def _build_base(recipe: Recipe, root: Path) -> None:
    debs = DEBS / recipe.suite
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    archives = find_archives(recipe.suite)
    main = next(archive for archive in archives if archive.release == recipe.suite)
    debootstrap = ["debootstrap", "--variant=minbase", f"--cache-dir={debs}", f"--keyring={KEYRING}"]
    debootstrap += ["--include=debian-archive-keyring,ca-certificates", recipe.suite, str(root), main.site]
    run_command(debootstrap, env=_environment(), timeout=BUILD_TIMEOUT)
    settings = root / "etc/apt/apt.conf.d/99test-host-build"
    settings.write_text(read_acquire_settings())
    (root / "etc/apt/sources.list").write_text("".join(f"{archive.line}\n" for archive in archives))
    # a host starts nothing while it is being built
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)

    apt = [
        "apt-get",
        "-y",
        "-o",
        "Dpkg::Options::=--force-unsafe-io",
        "-o",
        "APT::Keep-Downloaded-Packages=true",
    ]
    _run_in(root, debs, ["apt-get", "update"])
    _run_in(root, debs, [*apt, "full-upgrade"])
    _run_in(root, debs, [*apt, "install", "--no-install-recommends", *recipe.packages])
    if recipe.masked:
        _run_in(root, debs, ["systemctl", "mask", *recipe.masked])

    policy.unlink()
    settings.unlink()
    for index in (root / "var/lib/apt/lists").glob("*_*"):
        index.unlink()
    for name, content in recipe.files:
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(content)
    (root / "var/log/journal").mkdir(exist_ok=True)


def _run_in(root: Path, debs: Path, argv: Sequence[str]) -> None:
    """Run `argv` in a root that is not booted, with the machine's network and the cache of packages."""
    nspawn = ["systemd-nspawn", f"--directory={root}", "--register=no", "--keep-unit", "--pipe", "--quiet"]
    nspawn += ["--resolv-conf=copy-host", "--machine=test-host-build"]
    nspawn += [f"--bind={debs}:/var/cache/apt/archives"]
    nspawn += [f"--setenv={key}={value}" for key, value in _environment().items()]
    run_command([*nspawn, "--", *argv], shown=argv, env=_environment(), timeout=BUILD_TIMEOUT)


def _environment() -> dict[str, str]:
    """The stated environment and the proxies of this machine, without which it may reach no archive."""
    proxies = {key: os.environ[key] for key in PROXIES if key in os.environ}
    return {**ENVIRONMENT, **proxies}


if __name__ == "__main__":
    suites = [Suite(name) for name in sys.argv[1:]]
    for suite in suites:
        ensure_base(suite)
        ensure_root(guest_recipe(suite))
    # the nodes of test_failover.py
    for suite in sorted(suites)[:1]:
        ensure_root(cluster_recipe(suite))
