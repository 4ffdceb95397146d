# SPDX-License-Identifier: Apache-2.0
"""A control group of its own for each test host, in every hierarchy of this machine (v1, hybrid or v2).

systemd-nspawn with --keep-unit builds its tree below the caller's group: two hosts started from one
group would share one tree.
"""

import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "hypemand-test-"
REMOVE_DEADLINE = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy; `key` is its second field in /proc/PID/cgroup, and empty for v2."""

    mount: Path
    key: str

    @property
    def is_v1_controller(self) -> bool:
        return self.key != "" and not self.key.startswith("name=")


def find_hierarchies() -> list[Hierarchy]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found.append(Hierarchy(Path(mount), ""))
        elif kind == "cgroup":
            found.append(Hierarchy(Path(mount), _v1_key(options.split(","))))
    return found


def _v1_key(options: list[str]) -> str:
    named = [option for option in options if option.startswith("name=")]
    if named:
        return named[0]
    generic = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"}
    return ",".join(option for option in options if option not in generic and "=" not in option)


def make_group(name: str) -> list[Path]:
    """Make the group in every hierarchy; gives back their directories."""
    made = []
    for hierarchy in find_hierarchies():
        group = hierarchy.mount / (PREFIX + name)
        group.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.key.split(","):
            for resource in ("cpuset.cpus", "cpuset.mems"):
                (group / resource).write_text((hierarchy.mount / resource).read_text())
        made.append(group)
    return made


def find_group_of(pid: int) -> list[Path]:
    """The directories of the group that a process is in, one for each hierarchy."""
    mounts = {hierarchy.key: hierarchy.mount for hierarchy in find_hierarchies()}
    groups = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, key, path = line.split(":", 2)
        if key in mounts:
            groups.append(mounts[key] / path.lstrip("/"))
    return groups


def prefer(name: str) -> None:
    """Give the group's processes nearly all CPU time that they want, whatever else runs."""
    for hierarchy in find_hierarchies():
        for file, most in (("cpu.shares", "262144"), ("cpu.weight", "10000")):
            path = hierarchy.mount / (PREFIX + name) / file
            if path.exists():
                path.write_text(most)


def find_processes(name: str) -> set[int]:
    """Every process in the group or below it."""
    pids: set[int] = set()
    for hierarchy in find_hierarchies():
        for procs in (hierarchy.mount / (PREFIX + name)).rglob("cgroup.procs"):
            pids.update(int(pid) for pid in procs.read_text().split())
    return pids


def remove_group(name: str) -> None:
    """Remove the group and all below it; its processes must have been killed.

    A group stays busy for the moment in which the kernel buries its last process, and says nothing
    when that is over: hence the short sleeps up to a deadline.
    """
    deadline = time.monotonic() + REMOVE_DEADLINE
    for hierarchy in find_hierarchies():
        top = hierarchy.mount / (PREFIX + name)
        while top.exists():
            try:
                for directory in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
                    directory.rmdir()
                top.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
