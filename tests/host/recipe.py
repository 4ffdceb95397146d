# SPDX-License-Identifier: Apache-2.0
"""What a base root is made of; its hash is the root's name in the cache."""

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class Suite(StrEnum):
    """A Debian release that hypemand supports."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"


# What Debian's installer puts on any machine and our packages count on.
SYSTEM = ("systemd", "systemd-sysv", "dbus", "udev", "iproute2", "ca-certificates", "procps", "polkitd")

# The dependencies of our packages: a host has no network, so they are in the base.
DEPENDENCIES = (
    "python3-aiohttp",
    "python3-jsonschema",
    "python3-nftables",
    "python3-prometheus-client",
    "python3-pyroute2",
    "python3-pystemd",
    "python3-sdnotify",
    "python3-systemd",
    "python3-websocket",
    "python3-yaml",
    "qemu-system-x86",
    "e2fsprogs",
    "erofs-utils",
    "libnss-systemd",
    "nftables",
    "skopeo",
    "systemd-container",
    "umoci",
    "zstd",
)

# What the tests themselves run in a host.
TOOLS = (
    "busybox-static",
    "docker-registry",
    "file",
    "iptables",
    "openssl",
    "prometheus",
    "strace",
    "socat",
)

# What a node of a cluster has beside that: a root of its own, since they take as much again.
CLUSTER = (
    "corosync",
    "crmsh",
    "libxml2-utils",
    "openssh-client",
    "openssh-server",
    "pacemaker",
    "pcs",
    "resource-agents",
)

MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "docker-registry.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "prometheus.service",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "systemd-udevd.service",
)

# Files of the root, written last. An empty machine-id gives each host an id of its own; the two .updated
# say that nothing has to be rebuilt for the /usr that is there.
FILES = {
    "etc/.updated": "",
    "var/.updated": "",
    "etc/dpkg/dpkg.cfg.d/test-host": "force-unsafe-io\n",
    "etc/machine-id": "",
    "etc/hostname": "",
    "etc/resolv.conf": "",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


# What is in a guest that is a whole Debian: little, and on Debian 12 no udev, without which many images are
# made; a compiler, and the library of objtool, for modules; nspawn, for containers inside.
GUEST = ("systemd", "systemd-sysv", "dbus", "kmod", "gcc", "make", "libelf1", "systemd-container")
GUEST_PACKAGES = {Suite.BOOKWORM: GUEST, Suite.TRIXIE: (*GUEST, "udev")}
# As an image is made that is to find its identity at its first boot; and with the name of the machine that it
# was made on.
GUEST_FILES = {"etc/machine-id": "uninitialized\n", "etc/hostname": "builder\n"}


@dataclass(frozen=True)
class Recipe:
    """All that decides what is in a base root."""

    suite: Suite
    packages: tuple[str, ...] = SYSTEM + DEPENDENCIES + TOOLS
    masked: tuple[str, ...] = MASKED
    files: tuple[tuple[str, str], ...] = tuple(sorted(FILES.items()))
    version: int = 3

    @property
    def title(self) -> str:
        """What it makes, in a few words."""
        hosts = SYSTEM + DEPENDENCIES + TOOLS
        kinds = {hosts: "test hosts", hosts + CLUSTER: "nodes", GUEST_PACKAGES[self.suite]: "guests"}
        return f"a Debian {self.suite} root for {kinds.get(self.packages, 'new machines')}"

    @property
    def key(self) -> str:
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return f"{self.suite}-{hashlib.sha256(content).hexdigest()[:16]}"


def cluster_recipe(suite: Suite) -> Recipe:
    """A root for nodes of a cluster, which does not start by itself."""
    services = ("corosync.service", "pacemaker.service", "pcsd.service", "pcsd-ruby.service", "ssh.service")
    return Recipe(suite, SYSTEM + DEPENDENCIES + TOOLS + CLUSTER, MASKED + services)


def guest_recipe(suite: Suite) -> Recipe:
    """A root to make an image of."""
    return Recipe(suite, GUEST_PACKAGES[suite], (), tuple(sorted(GUEST_FILES.items())))
