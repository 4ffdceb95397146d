# SPDX-License-Identifier: Apache-2.0
"""Debian's archives as the machine's own apt configuration names them, for any suite."""

from dataclasses import dataclass
from pathlib import Path

from tests.host.command import run_command
from tests.host.recipe import Suite

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Archive:
    """One line of a sources.list: where, which release, which component."""

    site: str
    release: str
    component: str

    @property
    def line(self) -> str:
        return f"deb [signed-by={KEYRING}] {self.site} {self.release} {self.component}"


def find_archives(suite: Suite) -> list[Archive]:
    """The archives of this machine's own release, with the name of `suite` in place of that release's.

    The plain release comes first. Archives of other vendors do not bear the release's name and fall out.
    """
    own = _own_codename()
    listing = run_command(
        ["apt-get", "indextargets", "--format", "$(CREATED_BY)|$(SITE)|$(RELEASE)|$(COMPONENT)"], timeout=60
    )
    archives = set()
    for line in listing.stdout.splitlines():
        kind, site, release, component = line.split("|")
        if kind == "Packages" and component == "main" and release.split("-")[0] == own:
            archives.add(Archive(site, release.replace(own, str(suite), 1), component))
    ordered = sorted(archives, key=lambda archive: (archive.release, archive.site))
    if not any(archive.release == suite for archive in ordered):
        raise LookupError(
            f"apt knows no archive of {own} main; give it one in /etc/apt/sources.list and run apt-get update"
        )
    return ordered


def _own_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise LookupError("/etc/os-release names no VERSION_CODENAME")


def own_suite() -> Suite | None:
    """This machine's release, if it is one that hypemand supports."""
    own = _own_codename()
    return Suite(own) if own in list(Suite) else None


def read_acquire_settings() -> str:
    """The machine's apt settings on how to download (proxies, certificates, dates), as an apt.conf."""
    lines = run_command(["apt-config", "dump", "Acquire"], timeout=60).stdout.splitlines()
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in lines if line.startswith(wanted))
