# SPDX-License-Identifier: Apache-2.0
"""Files of the host that a definition names: read at a start, for the guest.

The paths are root's own words, so links are followed as for root; what is read is bounded, and a path that
leads to a device or a pipe holds nobody up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypemand.config.definition import Definition, DirectoryMount, GuestFile, Secret
from hypemand.config.envfile import MAX_BYTES, parse_env_file
from hypemand.config.sizes import format_size
from hypemand.errors import InvalidDefinition, Problem
from hypemand.protocol.filesdisk import MAX_CONTENT, DiskFile
from hypemand.recordfile import read_beginning

_STORES = ("/run/credentials/@system", "/etc/credstore", "/run/credstore", "/usr/lib/credstore")
_ENCRYPTED_STORES = ("/run/credstore.encrypted", "/etc/credstore.encrypted", "/usr/lib/credstore.encrypted")


@dataclass(frozen=True, slots=True)
class DirectoryImage:
    """A directory of the host that a guest gets, and the image that was made of it."""

    mount: DirectoryMount
    image: Path

    @property
    def serial(self) -> str:
        """Of its drive: at most 20 bytes."""
        key = f"{self.mount.source}\0{self.mount.mount_path}".encode()
        return f"dir-{hashlib.sha256(key).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class HostFiles:
    """What the host's files give a guest: variables, files to write, and of directories the images."""

    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[DiskFile, ...] = ()
    directories: tuple[DirectoryImage, ...] = ()


NO_FILES = HostFiles()


def read_host_files(definition: Definition, root: Path = Path("/")) -> HostFiles:
    """Read what a definition names. InvalidDefinition with all problems. `root`: where credential stores are
    looked for. Blocks."""
    problems: list[Problem] = []
    env = _read_env(definition.env_file, problems)
    files = _read_files(definition.files, problems)
    problems += _find_secret_problems(definition.secrets, root)
    if problems:
        raise InvalidDefinition(problems)
    return HostFiles(env, files)


def _unreadable(key: str, path: str, error: OSError) -> Problem:
    return Problem(
        "", 0, 0, key, f"{path} cannot be read: {error.strerror}", "create it, or remove the entry"
    )


def _read_env(paths: tuple[str, ...], problems: list[Problem]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, word in enumerate(paths):
        path = word.removeprefix("-")
        try:
            found |= parse_env_file(read_beginning(Path(path), MAX_BYTES + 1), path)
        except FileNotFoundError as error:
            if path == word:
                problems.append(_unreadable(f"env_file[{number}]", path, error))
        except OSError as error:
            problems.append(_unreadable(f"env_file[{number}]", path, error))
        except InvalidDefinition as error:
            problems += error.problems
    return found


def _read_files(files: tuple[GuestFile, ...], problems: list[Problem]) -> tuple[DiskFile, ...]:
    read = []
    left = MAX_CONTENT
    for number, file in enumerate(files):
        content = b"" if file.content is None else file.content.encode()
        if file.source is not None:
            try:
                content = read_beginning(Path(file.source), left + 1)
            except OSError as error:
                problems.append(_unreadable(f"files[{number}].source", file.source, error))
                continue
        left -= len(content)
        if left < 0:
            what = f"the files have more than {format_size(MAX_CONTENT)} together"
            hint = "use a volume, or a directory of the host as the source of one"
            problems.append(Problem("", 0, 0, f"files[{number}]", what, hint))
            break
        fields = {"path": file.path, "mode": file.mode, "owner": file.owner}
        read.append(DiskFile(fields, content))
    return tuple(read)


def _find_secret_problems(secrets: tuple[Secret, ...], root: Path) -> Iterator[Problem]:
    """What systemd will not find: it says so in the journal alone, and not where it has looked."""
    for number, secret in enumerate(secrets):
        if secret.encrypted_content is not None:
            continue
        key, path = f"secrets[{number}].source", Path(secret.source)
        if path.is_absolute():
            if not path.exists():
                yield Problem("", 0, 0, key, f"{path} does not exist", "create it, with mode 0600")
            continue
        stores = (*_STORES, *(_ENCRYPTED_STORES if secret.encrypted else ()))
        if not any((root / store[1:] / path).exists() for store in stores):
            what = f"there is no credential {secret.source}"
            hint = f"create it as a file in {(_ENCRYPTED_STORES if secret.encrypted else _STORES)[1]}"
            yield Problem("", 0, 0, key, what, hint)
