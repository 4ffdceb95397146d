# SPDX-License-Identifier: Apache-2.0
"""A state directory that the daemon cannot write to is named with the drop-in that lets it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hypemand.config.pools import PoolConfig
from hypemand.config.statedir import (
    DROPIN,
    POOLS_DROPIN,
    find_sandbox_problem,
    find_uncovered_pools,
    find_uncovered_problem,
)

CONFIG = Path("/etc/hypemand/hypemand.yaml")
WRITABLE = ["/var/lib/hypemand", "/run/userdb"]


def test_what_the_unit_may_write_to_is_no_problem(tmp_path: Path) -> None:
    assert find_uncovered_problem(Path("/var/lib/hypemand"), CONFIG, WRITABLE) is None
    assert find_uncovered_problem(Path("/var/lib/hypemand/below"), CONFIG, WRITABLE) is None
    assert find_uncovered_problem(Path("/srv/hypemand"), CONFIG, [*WRITABLE, "-/srv"]) is None
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert find_uncovered_problem(tmp_path / "there", CONFIG, [str(tmp_path / "link")]) is None


def test_what_it_may_not_write_to_is_named_with_the_drop_in(tmp_path: Path) -> None:
    problem = find_uncovered_problem(Path("/srv/hypemand-2"), CONFIG, [*WRITABLE, "/srv/hypemand"])
    assert problem is not None
    assert (problem.file, problem.key) == (str(CONFIG), "state_dir")
    assert problem.message == "/srv/hypemand-2 is read-only for hypemand.service"
    assert f"{DROPIN}: [Service] and ReadWritePaths=/srv/hypemand-2," in problem.hint
    (tmp_path / "link").symlink_to("/srv/there")
    linked = find_uncovered_problem(tmp_path / "link", CONFIG, [str(tmp_path)])
    assert linked is not None
    assert "ReadWritePaths=/srv/there," in linked.hint


def test_a_pool_that_it_may_not_write_to_is_named_with_the_drop_in() -> None:
    pools = {
        "covered": PoolConfig(Path("/srv/covered")),
        "fast": PoolConfig(Path("/mnt/nvme")),
        "san": PoolConfig(Path("/srv/shared"), shared=True),
    }
    fast, san = find_uncovered_pools(pools, CONFIG, [*WRITABLE, "/srv/covered"])
    assert (fast.key, fast.message) == ("pools.fast", "/mnt/nvme is read-only for hypemand.service")
    assert f"two lines to {POOLS_DROPIN}: [Service] and ReadWritePaths=/mnt/nvme," in fast.hint
    mounted = "[Unit] and RequiresMountsFor=/srv/shared, [Service] and ReadWritePaths=/srv/shared,"
    assert f"four lines to {POOLS_DROPIN}: {mounted}" in san.hint


def umount(place: Path) -> None:
    subprocess.run(["umount", place], check=True, timeout=10)


def test_a_link_in_the_place_that_systemd_makes_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/srv/there")
    problem = find_uncovered_problem(Path("/var/lib/hypemand"), CONFIG, WRITABLE, tmp_path / "link")
    assert str(problem) == (
        f"{tmp_path}/link: is a symbolic link, with which hypemand.service does not start;"
        " mount the directory there instead, or set state_dir in hypemand.yaml"
    )


@contextmanager
def mounted(place: Path, *commands: str) -> Iterator[None]:
    place.mkdir()
    with ExitStack() as stack:
        for command in commands:
            subprocess.run(["mount", *command.split(), place], check=True, timeout=10)
            if "remount" not in command:
                stack.callback(umount, place)
        yield


def test_the_daemon_finds_a_place_that_its_sandbox_makes_read_only(tmp_path: Path) -> None:
    assert find_sandbox_problem(tmp_path / "new" / "state", CONFIG) is None
    place = tmp_path / "with a blank"
    with mounted(place, "-t tmpfs tmpfs", "-o remount,bind,ro"):
        for path in (place, place / "new"):
            problem = find_sandbox_problem(path, CONFIG)
            assert problem is not None
            assert problem.message == f"{path} is read-only for hypemand.service"
    with mounted(tmp_path / "broken", "-t tmpfs -o ro tmpfs"):
        assert find_sandbox_problem(tmp_path / "broken", CONFIG) is None, "no drop-in would help"
