# SPDX-License-Identifier: Apache-2.0
"""ExecStop= of a VM's unit: tell the guest to power off and wait until the VMM has gone.

``python3 -I -m hypemand.unit.stop RUNTIME_DIR GRACE_SECONDS``. Needs no daemon: the
stop port is for this alone. Whatever goes wrong here, systemd goes on to end the VMM by signal.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from hypemand.sockets import hold_socket


def stop_guest(path: Path, grace: int) -> None:
    """Send the order; back when the VMM has closed the port, which it does by ending. OSError when
    there is no VMM. No deadline of its own: systemd's TimeoutStopSec= ends this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as port:
        with hold_socket(path, path.parent.stat().st_uid) as held:
            port.connect(held)
        port.sendall(f"poweroff {grace}\n".encode())
        while port.recv(4096):
            pass


def main() -> int:
    """Exit 1, with the reason on standard error, when the guest cannot be told. A VMM that has gone is what
    is wanted: systemd runs ExecStop= also after a guest that has powered off by itself."""
    runtime, grace = sys.argv[1], int(sys.argv[2])
    try:
        stop_guest(Path(runtime) / "stop.sock", grace)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        return 0
    except OSError as error:
        print(f"cannot ask the guest to power off: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
