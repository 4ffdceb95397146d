# SPDX-License-Identifier: Apache-2.0
"""ExecStop= of a VM's unit: ask the guest to power off, also one that is paused, and wait for the VMM's end.

``python3 -I -m hypemand.unit.stop RUNTIME_DIR GRACE_SECONDS STATE_DIR``, with $MAINPID of systemd's. Needs no
daemon: the stop port is for this alone. With ``VM`` after that, a shutdown of the host puts the VM into
Standby, which is the daemon's to do. Whatever goes wrong here, systemd ends the VMM by signal afterwards.

The unit's TimeoutStopSec= bounds each step of its end, of which this is the first, and the only one that may
take long: as long as the guest may, for which systemd is notified here.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hypemand.recordfile import BadRecord, load_record
from hypemand.sockets import hold_socket
from hypemand.systemd.notify import notify_for
from hypemand.vm.folders import RECORD, STANDBY
from hypemand.vmm.control import CONTROL, RESUME

POWER_OFF = 5
"""Seconds beyond the grace of the guest's program: to sync, to power off and for the VMM to end."""
# seconds; the latter of what systemd gives a service to stop by default
_ANSWER_DEADLINE, _SAVE_DEADLINE = 5, 60


def stop_guest(runtime: Path, grace: int) -> None:
    """Send the order; back when the VMM has closed the port, which it does by ending. OSError when
    there is no VMM. No deadline of its own: systemd ends this process.

    A guest that is paused is resumed, since it cannot hear the order before. That is the daemon's to do while
    it is there: whoever comes meanwhile waits for the greeting of the control socket.
    """
    uid = runtime.stat().st_uid
    with _open_socket() as port, _open_socket() as control, select.epoll() as waiting:
        _connect(port, runtime / "stop.sock", uid)
        port.sendall(f"poweroff {grace}\n".encode())
        waiting.register(port, select.EPOLLIN)
        control.setblocking(False)
        with suppress(OSError):
            _connect(control, runtime / f"{CONTROL}.sock", uid)
            waiting.register(control, select.EPOLLIN)
        _await_end(port, control, waiting)


def _await_end(port: socket.socket, control: socket.socket, waiting: select.epoll) -> None:
    """Until the VMM has closed `port`. What it says is read and counts for nothing: it may be anybody's."""
    order = RESUME
    while True:
        ready = [fd for fd, _events in waiting.poll()]
        if port.fileno() in ready and not port.recv(4096):
            return
        if control.fileno() in ready:
            try:
                if control.recv(4096):
                    order = order[control.send(order) :]
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            waiting.unregister(control)


def extend_deadline(main_pid: int, seconds: int) -> None:
    """Have systemd wait so long for the end of this process, if it would wait for less. OSError."""
    notify_for(main_pid, f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}", wait=True)


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def _connect(client: socket.socket, path: Path, uid: int) -> None:
    with hold_socket(path, uid) as held:
        client.connect(held)


def is_saved(state: Path, run: str) -> bool:
    """Was this run put into Standby? Its guest is not to run any more, so that it cannot be asked."""
    try:
        return bool(load_record(state / STANDBY / RECORD, lambda document: document["run"] == run))
    except (OSError, BadRecord):
        return False


def is_shutdown() -> bool:
    """Does the host shut down?"""
    command = ["systemctl", "is-system-running"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, timeout=_ANSWER_DEADLINE, check=False)
        return done.stdout.strip() == b"stopping"
    return False


def save(vm: str) -> bool:
    """Have the daemon put the VM into Standby. What goes wrong is on standard error."""
    try:
        subprocess.run(["hypemanctl", "standby", vm], timeout=_SAVE_DEADLINE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the VM is stopped instead: {error}", file=sys.stderr)
        return False
    return True


def _wait_longer(seconds: int) -> None:
    if (main_pid := os.environ.get("MAINPID")) is not None:
        try:
            extend_deadline(int(main_pid), seconds)
        except ProcessLookupError:
            pass  # the VMM has gone
        except OSError as error:
            print(f"cannot tell systemd to wait {seconds} s: {error.strerror}", file=sys.stderr)


def main() -> int:
    """Exit 1, with the reason on standard error, when the guest cannot be reached. A VMM that has ended is no
    error: systemd runs ExecStop= also after a guest that has powered off by itself."""
    runtime, grace = sys.argv[1], int(sys.argv[2])
    # units that an earlier version of hypemand has made name no folder
    if any(is_saved(Path(state), os.environ.get("INVOCATION_ID", "")) for state in sys.argv[3:4]):
        return 0
    if sys.argv[4:] and is_shutdown():
        _wait_longer(grace + POWER_OFF + _SAVE_DEADLINE)
        if save(sys.argv[4]):
            return 0
    _wait_longer(grace + POWER_OFF)
    try:
        stop_guest(Path(runtime), grace)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        return 0
    except OSError as error:
        print(f"cannot ask the guest to power off: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
