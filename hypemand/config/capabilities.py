# SPDX-License-Identifier: Apache-2.0
"""Capabilities of capabilities(7): their names as Docker has them, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# by number
NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
    *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
    *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
ALL = "ALL"
# also those that a later kernel has
_EVERY = 2**64 - 1


def parse_capability(text: str) -> str:
    """The name in capitals and without CAP_, or ALL. ValueError: what is wrong; what would be right."""
    name = text.upper().removeprefix("CAP_")
    if name == ALL or name in NAMES:
        return name
    close = get_close_matches(name, NAMES, n=1)
    hint = (
        f"did you mean {close[0]}?" if close else "write a name of capabilities(7), such as NET_ADMIN, or ALL"
    )
    raise ValueError(f"{text[:40]!r} is not a capability; {hint}")


def derive_mask(added: Iterable[str], dropped: Iterable[str]) -> int | None:
    """Those that a program has of all, one bit each by number: without `dropped`, with `added`, which comes
    second as for Docker. None: all."""
    plus, minus = ({parse_capability(text) for text in texts} for texts in (added, dropped))
    if ALL in plus:
        mask = _EVERY & ~_bits(minus)
    else:
        mask = (0 if ALL in minus else _EVERY & ~_bits(minus)) | _bits(plus)
    return None if mask == _EVERY else mask


def _bits(names: Iterable[str]) -> int:
    return sum(1 << NAMES.index(name) for name in names if name != ALL)
