# SPDX-License-Identifier: Apache-2.0
"""A command in a guest runs as the VM's program does, where it says nothing else."""

from __future__ import annotations

from dataclasses import replace

from hypemand.config.mode import Mode
from hypemand.manager.guestops import like_the_program
from hypemand.model.exec import ExecRequest
from hypemand.protocol.configdisk import GuestConfig

PLAIN = ExecRequest(("true",), {"B": "mine"}, None, None, None)
GUEST = GuestConfig(
    name="web",
    mode=Mode.EXEC,
    argv=("app",),
    env={"A": "1", "B": "2"},
    workdir="/srv",
    user="www",
    stop_signal=15,
    agent=True,
    headers=False,
    settings=(("umask", "18"),),
)


def test_what_is_left_out_is_the_programs() -> None:
    made = like_the_program(PLAIN, GUEST)
    assert made == replace(
        PLAIN, env={"A": "1", "B": "mine"}, cwd="/srv", user="www", settings=(("umask", "18"),)
    )


def test_what_is_said_stands() -> None:
    made = like_the_program(replace(PLAIN, cwd="/tmp", user="root", umask=0), GUEST)
    assert (made.cwd, made.user, made.umask) == ("/tmp", "root", 0)
