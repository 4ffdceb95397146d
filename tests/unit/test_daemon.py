# SPDX-License-Identifier: Apache-2.0
"""The daemon's own end, where it cannot run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# systemd's socket becomes file descriptor 3, as sd_listen_fds(3) says
REFUSE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
from hypemand.daemon import _refuse_pending
_refuse_pending()
"""


def test_a_client_that_waits_for_a_daemon_with_a_wrong_configuration_is_sent_away(tmp_path: Path) -> None:
    """Else systemd starts it again for that client, at once and for ever."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        client.connect(str(tmp_path / "api.sock"))
        client.settimeout(30)
        command = [sys.executable, "-c", REFUSE, str(listener.fileno())]
        subprocess.run(
            command, pass_fds=[listener.fileno()], cwd=ROOT, env=os.environ, timeout=60, check=True
        )
        assert client.recv(1) == b""
