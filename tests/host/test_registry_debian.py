# SPDX-License-Identifier: Apache-2.0
"""A whole Debian through a registry: every file of it is in the guest as debootstrap has made it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.lab import start_host
from tests.host.recipe import Suite, guest_recipe
from tests.host.registries import HERE, TLS, remote_digest, run_registries
from tests.host.roots import ensure_root
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

IMAGE = f"{TLS}/debian:whole"
BOOT_DEADLINE = 240.0
# Kind, mode, owner, links, size where that is the file's own, time in seconds, path, target.
FILES = r"""
cd "$1"
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
    -o -path ./opt/hypeman -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf \) -prune \
    -o \
    \( -type d -printf '%y %m %U:%G %p\n' -o -printf '%y %m %U:%G %n %s %T@ %p %l\n' \) |
    sed -E 's|\.[0-9]+ \./| ./|' | LC_ALL=C sort
"""
# argv: the folder. A second layer over Debian's: what a minimal one has nothing of.
EXTRA = r"""
cd "$1"
mkdir -p extra/srv/extra
cp /srv/debian/usr/bin/true extra/srv/extra/capable
ln extra/srv/extra/capable extra/srv/extra/again
cp /srv/debian/usr/bin/id extra/srv/extra/setuid; chown 1234:2345 extra/srv/extra/setuid
chmod 6755 extra/srv/extra/setuid
python3 -c 'import os; os.setxattr("extra/srv/extra/capable", "security.capability",
    bytes.fromhex("0100000200040000000000000000000000000000"))'
tar --numeric-owner --xattrs --xattrs-include='*' -C extra -cf extra.tar srv
tar --numeric-owner --xattrs --xattrs-include='*' --one-file-system -C /srv/debian -cf debian.tar .
umoci new --image oci:debian
umoci raw add-layer --image oci:debian debian.tar
umoci raw add-layer --image oci:debian extra.tar
umoci config --image oci:debian --config.cmd /sbin/init
rm debian.tar
skopeo --insecure-policy copy -q oci:oci:debian "docker://$2"
"""
CAPABILITY = (
    'my ($path, $name, $b) = ("/srv/extra/capable", "security.capability", "\\0" x 64);'
    "my $n = syscall(191, $path, $name, $b, 64);"
    'print unpack("H*", substr($b, 0, $n)), "\\n"'
)


@pytest.fixture(scope="module")
def lab(suite: Suite) -> Iterator[Vms]:
    """VMs on a host whose registry has the image."""
    root = ensure_root(guest_recipe(suite))
    with (
        start_host(suite, binds=[f"{root}:/srv/debian"]) as host,
        run_registries(host),
        vms_of(host) as vms,
    ):
        host.run(["sh", "-euc", EXTRA, "extra", HERE, IMAGE], timeout=300)
        vms.ctl("image", "pull", IMAGE, timeout=300)
        yield vms
        vms.remove_all()
        vms.ctl("image", "prune", "--all")


def test_every_file_is_in_the_guest_as_it_was_made(lab: Vms) -> None:
    shown = lab.ctl("image", "inspect", IMAGE).stdout
    assert remote_digest(lab.host, IMAGE) in shown
    lab.define("files", None, image=IMAGE, memory="256M", entrypoint=[], cmd=["sleep", "infinity"])
    lab.start("files")
    there = lab.execute("files", "sh", "-euc", FILES, "files", "/").splitlines()
    made = lab.host.run(["sh", "-euc", FILES, "files", "/srv/debian"]).stdout.splitlines()
    mine = [line for line in there if " ./srv/extra" in line]
    assert len(made) > 5000
    assert sorted(set(made) ^ (set(there) - set(mine))) == []
    assert any(line.startswith("f 4755 0:0") for line in made), "set-user-id"
    assert any(line.startswith("f 2755 0:42") for line in made), "set-group-id, of shadow"
    assert any(line.split()[3] > "1" for line in made if line[0] == "f"), "hard links"
    own = {line.split()[6]: line.split()[:4] for line in mine if line[0] == "f"}
    assert own["./srv/extra/setuid"] == ["f", "6755", "1234:2345", "1"]
    assert own["./srv/extra/capable"][3] == own["./srv/extra/again"][3] == "2"
    capability = lab.execute("files", "perl", "-e", CAPABILITY)
    assert capability == "0100000200040000000000000000000000000000\n"
    lab.ctl("stop", "files")


def test_its_systemd_is_started(lab: Vms) -> None:
    lab.define(
        "debian", None, image=IMAGE, memory="512M", disk="1G", boot_timeout="200s", stop_timeout="120s"
    )
    lab.host.run(["systemctl", "start", "hypeman@debian"], timeout=BOOT_DEADLINE)
    assert lab.execute("debian", "cat", "/proc/1/comm") == "systemd\n"
    assert lab.execute("debian", "sh", "-c", "cat /etc/debian_version; stat -c %a /usr/bin/su").endswith(
        "4755\n"
    )
    lab.host.run(["systemctl", "stop", "hypeman@debian"], timeout=BOOT_DEADLINE)
