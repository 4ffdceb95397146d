# SPDX-License-Identifier: Apache-2.0
"""Words of Docker, Compose, Kubernetes, libvirt and systemd for what a key of a definition does.

A table of its own for each place: the definition, which has those of `unit` and `network` too, and the items
of `volumes`. A word that is a key of its place has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# For a word that is spelled almost like a key there is a hint without any row.


@dataclass(frozen=True, slots=True)
class KeyHint:
    """`key`: the right one, from the top of the definition. `example`: a line of a definition that has it; of
    an item of `volumes` a line of that."""

    key: str
    example: str

    def __str__(self) -> str:
        return f"use {self.key}, for example {self.example}"


_PUBLISH = KeyHint("network.publish", 'network: {publish: ["8080:80"]}')
_NETWORK = KeyHint("network", "network: default")
_ADDRESS = KeyHint("network.address", "network: {address: 10.87.0.10}")
_ENV = KeyHint("env", "env: {TZ: Etc/UTC}")
_ENV_FILE = KeyHint("env_file", "env_file: [/etc/shop/web.env]")
_FILES = KeyHint("files", 'files: [{path: /etc/app.conf, content: "debug = true"}]')
_SECRETS = KeyHint("secrets", "secrets: [{name: db-password}]")
_CMD = KeyHint("cmd", "cmd: [httpd, -f]")
_MEMORY = KeyHint("memory", "memory: 512M")
_VCPUS = KeyHint("vcpus", "vcpus: 2")
_DISK = KeyHint("disk", "disk: 10G")
_WORKDIR = KeyHint("workdir", "workdir: /srv")
_AFTER = KeyHint("unit.After", "unit: {Requires: hypeman@db.service, After: hypeman@db.service}")
_RESTART = KeyHint("restart", "restart: on-failure")
_READY = KeyHint("ready", "ready: tcp:5432")
_HEALTH = KeyHint("health", "health: http:8080/health")
_VOLUMES = KeyHint("volumes", "volumes: [{volume: data, mount_path: /data}]")
_TAGS = KeyHint("tags", "tags: {team: shop}")
_STOP = KeyHint("stop_timeout", "stop_timeout: 30s")
_BOOT = KeyHint("boot_timeout", "boot_timeout: 2min")
_PULL = KeyHint("image_pull", "image_pull: always")
_AUTOSTART = KeyHint("autostart", "autostart: true")
_ULIMITS = KeyHint("ulimits", "ulimits: {nofile: 65536}")
_USER = KeyHint("user", "user: nobody")
_VOLUME = KeyHint("volumes[].volume", "volume: data")
_SOURCE = KeyHint("volumes[].source", "source: /srv/www")
_MOUNT_PATH = KeyHint("volumes[].mount_path", "mount_path: /data")
_READONLY = KeyHint("volumes[].readonly", "readonly: true")

# Words in lower case, without "-" and "_".
_DEFINITION: Mapping[str, KeyHint] = {
    **dict.fromkeys(("port", "ports", "publish", "publishport", "expose", "portmappings"), _PUBLISH),
    **dict.fromkeys(("net", "networks", "networkmode", "bridge", "interfaces"), _NETWORK),
    **dict.fromkeys(("ip", "ipaddress", "ipv4address", "address"), _ADDRESS),
    **dict.fromkeys(
        ("ip6", "ipv6address", "address6"), KeyHint("network.address6", "network: {address6: fd00::9}")
    ),
    **dict.fromkeys(("mac", "macaddress"), KeyHint("network.mac", 'network: {mac: "02:00:00:00:00:09"}')),
    **dict.fromkeys(("hostname", "containername", "domainname"), KeyHint("name", "name: web")),
    **dict.fromkeys(("environment", "envs", "passenvironment"), _ENV),
    **dict.fromkeys(("environmentfile", "environmentfiles", "envfrom"), _ENV_FILE),
    **dict.fromkeys(("configs", "configmap", "configmaps", "copyfiles"), _FILES),
    **dict.fromkeys(("credentials", "loadcredential", "loadcredentialencrypted", "setcredential"), _SECRETS),
    **dict.fromkeys(("command", "commands", "args", "exec", "execstart"), _CMD),
    **dict.fromkeys(("workingdir", "workingdirectory", "cwd", "chdir"), _WORKDIR),
    **dict.fromkeys(("memlimit", "memreservation", "memorymax", "memorylimit", "mem", "ram"), _MEMORY),
    **dict.fromkeys(("cpu", "cpus", "cpucount", "cores", "smp", "deploy", "resources"), _VCPUS),
    "cpuquota": KeyHint("cpu_limit", "cpu_limit: 1.5"),
    **dict.fromkeys(("disksize", "storage", "storageopt", "rootsize", "diskgb", "size"), _DISK),
    **dict.fromkeys(("dependson", "links"), _AFTER),
    **dict.fromkeys(("readinessprobe", "startupprobe"), _READY),
    **dict.fromkeys(("healthcheck", "livenessprobe"), _HEALTH),
    **dict.fromkeys(("restartpolicy",), _RESTART),
    **dict.fromkeys(("volume", "mount", "mounts", "volumemounts", "binds", "bindpaths"), _VOLUMES),
    **dict.fromkeys(("label", "labels", "annotations", "metadata"), _TAGS),
    **dict.fromkeys(("stopgraceperiod", "timeoutstopsec", "terminationgraceperiodseconds"), _STOP),
    **dict.fromkeys(("timeoutstartsec", "timeoutsec", "starttimeout"), _BOOT),
    **dict.fromkeys(("pullpolicy", "imagepullpolicy", "pull"), _PULL),
    **dict.fromkeys(("enabled", "wantedby", "requiredby", "startonboot", "onboot"), _AUTOSTART),
    **dict.fromkeys(("limitnofile",), _ULIMITS),
    **dict.fromkeys(("runasuser", "dynamicuser", "group"), _USER),
}
_VOLUME_ITEM: Mapping[str, KeyHint] = {
    **dict.fromkeys(("name", "id", "claimname"), _VOLUME),
    **dict.fromkeys(("src", "hostpath", "host"), _SOURCE),
    **dict.fromkeys(("target", "destination", "dst", "path", "mountpoint", "where"), _MOUNT_PATH),
    **dict.fromkeys(("ro", "mode"), _READONLY),
}
TABLES: Mapping[str, Mapping[str, KeyHint]] = {
    "": _DEFINITION,
    "unit": _DEFINITION,
    "network": _DEFINITION,
    "volumes": _VOLUME_ITEM,
}


def find_key_hint(place: str, word: str) -> KeyHint | None:
    """What to use for `word`, which is no key of `place`: "" or a key of the definition."""
    return TABLES.get(place, {}).get(word.lower().replace("-", "").replace("_", ""))
