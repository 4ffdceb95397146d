# SPDX-License-Identifier: Apache-2.0
"""A definition laid over an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import Definition
from hypemand.config.mode import Mode
from hypemand.errors import ImageNotReady, InvalidDefinition
from hypemand.model.images import OciConfig
from hypemand.protocol.configdisk import GuestConfig
from hypemand.storage.images import Image
from hypemand.storage.program import parse_signal, resolve_program


def resolve(config: OciConfig, **definition: Any) -> GuestConfig:
    image = Image("app", "id", "sha256:0", "amd64", 1, 0.0, "test", Path("/none"), config)
    return resolve_program(Definition(name="vm", image="app", **definition), image)


# As Docker's table of ENTRYPOINT and CMD: image's entrypoint and cmd, the definition's, what runs.
TABLE = [
    ((), ("c", "1"), None, None, ("c", "1")),
    (("e",), ("c",), None, None, ("e", "c")),
    (("e",), (), None, None, ("e",)),
    (("e",), ("c",), None, ("d",), ("e", "d")),
    (("e",), ("c",), None, (), ("e",)),
    (("e",), ("c",), ("f", "g"), None, ("f", "g")),
    (("e",), ("c",), ("f",), ("d",), ("f", "d")),
    (("e",), ("c",), (), ("d",), ("d",)),
    (("",), ("c", "1"), None, None, ("c", "1")),
    (("",), ("c",), None, ("d",), ("d",)),
    (("", ""), ("c",), (), ("d",), ("d",)),
]


@pytest.mark.parametrize(("entrypoint", "cmd", "own_entrypoint", "own_cmd", "argv"), TABLE)
def test_entrypoint_and_cmd_join_as_in_docker(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    own_entrypoint: tuple[str, ...] | None,
    own_cmd: tuple[str, ...] | None,
    argv: tuple[str, ...],
) -> None:
    config = OciConfig(entrypoint=entrypoint, cmd=cmd)
    assert resolve(config, entrypoint=own_entrypoint, cmd=own_cmd).argv == argv


@pytest.mark.parametrize(
    "definition", [{}, {"entrypoint": ()}, {"cmd": ()}, {"entrypoint": ("",), "cmd": ("x",)}]
)
def test_nothing_to_run_is_told_with_the_cure(definition: dict[str, Any]) -> None:
    with pytest.raises(InvalidDefinition, match=r"cmd: there is no program to run.*image app.*set one"):
        resolve(OciConfig(), **definition)


def test_env_of_the_definition_wins_in_the_images_place() -> None:
    config = OciConfig(cmd=("x",), env=("PATH=/bin", "A=1", "no equals", "=x", "B=x=y"))
    env = resolve(config, env={"C": "3", "A": "2"}).env
    assert list(env.items()) == [("PATH", "/bin"), ("A", "2"), ("B", "x=y"), ("C", "3")]


def test_folder_user_and_signal_come_from_the_image_unless_defined() -> None:
    config = OciConfig(cmd=("x",), working_dir="/srv", user="www-data", stop_signal="SIGQUIT")
    guest = resolve(config)
    assert (guest.workdir, guest.user, guest.stop_signal) == ("/srv", "www-data", 3)
    guest = resolve(config, workdir="/", user="0:0")
    assert (guest.workdir, guest.user) == ("/", "0:0")
    guest = resolve(OciConfig(cmd=("x",)))
    assert (guest.workdir, guest.user, guest.stop_signal) == (None, None, 15)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("app", "/app"),
        ("./app/", "/app"),
        ("/srv//x/../y", "/srv/y"),
        ("..", "/"),
        ("//srv", "/srv"),
        ("", None),
    ],
)
def test_a_folder_of_an_image_begins_at_its_root(written: str, meant: str | None) -> None:
    assert resolve(OciConfig(cmd=("x",), working_dir=written)).workdir == meant


def test_agent_and_headers_are_the_definitions() -> None:
    guest = resolve(OciConfig(cmd=("x",)), guest_agent=False, kernel_headers=False)
    assert (guest.name, guest.agent, guest.headers) == ("vm", False, False)


@pytest.mark.parametrize(
    "init",
    [
        *("/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init", "//sbin/../sbin/init"),
        *("/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd", "/usr/bin/systemd"),
    ],
)
def test_an_init_means_systemd_mode_unless_defined(init: str) -> None:
    assert resolve(OciConfig(cmd=(init,))).mode is Mode.SYSTEMD
    assert resolve(OciConfig(cmd=(init,)), mode=Mode.EXEC).mode is Mode.EXEC
    assert resolve(OciConfig(cmd=("/bin/sh", init))).mode is Mode.EXEC
    assert resolve(OciConfig(cmd=("/bin/sh",)), mode=Mode.SYSTEMD).mode is Mode.SYSTEMD


def test_a_link_of_the_image_to_systemd_means_systemd_mode() -> None:
    plain = OciConfig(cmd=("/init",))
    image = Image("app", "id", "sha256:0", "amd64", 1, 0.0, "test", Path("/none"), plain, ("/init",))
    definition = Definition(name="vm", image="app")
    assert resolve_program(definition, image).mode is Mode.SYSTEMD
    assert resolve_program(replace(definition, mode=Mode.EXEC), image).mode is Mode.EXEC
    for other in ("/entry", "init", "systemd", "/usr/bin/systemd-run"):
        assert resolve_program(replace(definition, cmd=(other,)), image).mode is Mode.EXEC


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMIN", 34), ("SIGRTMAX-1", 63)],
)
def test_signals_are_read_as_docker_writes_them(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "SIGNOTHING", "RTMIN-1", "RTMAX+1", "RTMIN+31", "-9", "²"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a signal"):
        parse_signal(text)


def test_an_image_with_an_impossible_stop_signal_is_named() -> None:
    with pytest.raises(ImageNotReady, match=r"image app .* 'SIGNONE' is not a signal"):
        resolve(OciConfig(cmd=("x",), stop_signal="SIGNONE"))


@pytest.mark.parametrize(
    ("program", "init", "records"),
    [
        ("nginx", None, (("init", "1"),)),
        ("/bin/initialize", None, (("init", "1"),)),
        ("/init", None, ()),
        ("/usr/bin/tini", None, ()),
        ("dumb-init", None, ()),
        ("/sbin/my_init", None, ()),
        ("nginx", False, (("init", "0"),)),
        ("/init", True, (("init", "1"),)),
    ],
)
def test_a_program_that_is_an_init_is_pid_1(
    program: str, init: bool | None, records: tuple[tuple[str, str], ...]
) -> None:
    assert resolve(OciConfig(cmd=(program,)), init=init).boot_settings == records


def test_in_systemd_mode_keys_of_exec_mode_are_refused() -> None:
    config = OciConfig(cmd=("/sbin/init",))
    assert resolve(config, sysctls={"a.b": "1"}).boot_settings == (("sysctl", "a.b=1"),)
    with pytest.raises(InvalidDefinition, match="read_only: has no effect in systemd mode") as caught:
        resolve(config, read_only=True, cap_drop=("ALL",))
    assert [problem.key for problem in caught.value.problems] == ["read_only", "cap_drop"]


def test_a_read_only_root_has_no_kernel_headers() -> None:
    assert resolve(OciConfig(cmd=("x",))).headers
    assert not resolve(OciConfig(cmd=("x",)), read_only=True).headers


def test_a_terminal_is_one_that_programs_know() -> None:
    assert "TERM" not in resolve(OciConfig(cmd=("x",))).env
    assert resolve(OciConfig(cmd=("x",)), tty=True).env["TERM"] == "xterm"
    assert resolve(OciConfig(cmd=("x",), env=("TERM=vt100",)), tty=True).env["TERM"] == "vt100"
