# SPDX-License-Identifier: Apache-2.0
"""What the package's script leaves after a removal and a purge, in a mount namespace of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "debian/hypemand.postrm"
DEADLINE = 60.0
# all that the script touches is empty at first, and nobody else's; /run/mount is mount's own
FRESH = """
set -e
for directory in /etc /run /srv /var/lib; do mount -t tmpfs tmpfs $directory; done
rm -rf /run/mount
mkdir -p /etc/hypemand/vms.d /etc/systemd/system/multi-user.target.wants /run/hypemand/vms/web /run/userdb
mkdir -p /var/lib/hypemand/vms
touch /etc/hypemand/vms.d/web.yaml /run/hypemand/autostarted /run/userdb/hypeman-9.user /run/userdb/other.user
touch /var/lib/hypemand/vms/record
ln -s hypeman-9.user /run/userdb/9.user
ln -s /x '/etc/systemd/system/multi-user.target.wants/hypeman@web.service'
"""
SHOW = "find /etc /run /srv /var/lib -mindepth 1 | sort"


def run(before: str, what: str, after: str = SHOW) -> tuple[int, list[str]]:
    """Run the script with that argument between two of shell; its exit status, and what is listed then."""
    script = f"{FRESH}\n{before}\nset +e; sh {SCRIPT} {what} >&2; echo $?; {after}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        capture_output=True, text=True, timeout=DEADLINE, check=True,
    )  # fmt: skip
    status, *lines = done.stdout.splitlines()
    return int(status), lines


WANTS = "/etc/systemd/system/multi-user.target.wants"
STANDARD = ["/etc/systemd", "/etc/systemd/system", WANTS]


def test_a_removal_leaves_nothing_in_run_and_all_that_is_kept() -> None:
    assert run("", "remove") == (
        0,
        ["/etc/hypemand", "/etc/hypemand/vms.d", "/etc/hypemand/vms.d/web.yaml", *STANDARD,
         f"{WANTS}/hypeman@web.service", "/run/userdb", "/run/userdb/other.user", "/var/lib/hypemand",
         "/var/lib/hypemand/vms", "/var/lib/hypemand/vms/record"],
    )  # fmt: skip


def test_a_purge_leaves_nothing() -> None:
    assert run("", "purge") == (0, [*STANDARD, "/run/userdb", "/run/userdb/other.user"])
    assert run("rm /run/userdb/other.user", "purge") == (0, STANDARD)


def test_a_purge_leaves_mount_points_empty() -> None:
    mounts = """
        mkdir /srv/state /srv/volumes; touch /srv/state/image /srv/volumes/one
        mount --bind /srv/state /var/lib/hypemand
        mkdir /var/lib/hypemand/volumes; mount --bind /srv/volumes /var/lib/hypemand/volumes
    """
    status, left = run(mounts, "purge")
    assert status == 0
    assert [path for path in left if "hypemand" in path or path.startswith("/srv")] == [
        "/srv/state",
        "/srv/state/volumes",
        "/srv/volumes",
        "/var/lib/hypemand",
        "/var/lib/hypemand/volumes",
    ]


def test_a_purge_empties_what_a_link_leads_to_and_nothing_beside_it() -> None:
    link = """
        mkdir /srv/state /srv/beside; touch /srv/state/image /srv/beside/kept
        rm -r /var/lib/hypemand; ln -s /srv/state /var/lib/hypemand
        ln -s /srv/beside /srv/state/out
    """
    assert run(link, "purge", "find /srv /var/lib -mindepth 1 | sort") == (
        0,
        ["/srv/beside", "/srv/beside/kept", "/srv/state"],
    )


def test_what_cannot_be_removed_keeps_no_package_half_purged() -> None:
    """As on a disk that is read-only after an error."""
    broken = """
        mount -t tmpfs tmpfs /var/lib/hypemand; mkdir /var/lib/hypemand/kept
        mount -o remount,ro /var/lib/hypemand
    """
    status, left = run(broken, "purge")
    assert status == 0
    assert "/var/lib/hypemand/kept" in left
    assert "/etc/hypemand" not in left
