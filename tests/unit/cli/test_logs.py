# SPDX-License-Identifier: Apache-2.0
"""logs and analyze."""

from __future__ import annotations

import json
import threading

import pytest

from tests.unit.cli.canned import Canned, Failure
from tests.unit.cli.conftest import Cli


def test_logs_are_shown_as_they_are(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["one", "\x1b[1mtwo\x1b[0m ü", "", "  three"]
    done = cli.run("logs", "web")
    assert (done.stdout, done.returncode) == ("one\n\x1b[1mtwo\x1b[0m ü\n\n  three\n", 0)


def test_logs_part_a_last_line_without_end_from_the_next_run(daemon: Canned, cli: Cli) -> None:
    known = {"time": None, "invocation_id": None, "base64": None, "missing": 0}
    piece = "x" * 128 * 1024
    torn = [known | {"text": text, "partial": True} for text in ("no end", piece)]
    daemon.add("web").lines = ["one", torn[0], "two", torn[1], "three"]
    assert cli.run("logs", "web").stdout == f"one\nno end\ntwo\n{piece}three\n"


# title, clear screen, a C1 control, a bidirectional override, a line separator, a request for an answer
HOSTILE = "a\tb \x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\u2028x\x1b[6n ü ✓\r"


def is_harmless(seen: bytes) -> bool:
    """Has a terminal been sent nothing but text and ends of lines?"""
    return seen.decode().replace("\r\n", "").isprintable()


@pytest.mark.parametrize("words", [("logs", "web"), ("logs", "--timestamps", "web"), ("status", "web")])
def test_on_a_terminal_a_guests_control_characters_are_text(
    daemon: Canned, cli: Cli, words: tuple[str, ...]
) -> None:
    cli.environment["NO_COLOR"] = "1"
    daemon.add("web").lines = [HOSTILE]
    seen = cli.run_on_terminal(*words)
    assert is_harmless(seen)
    assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egpj.exe\\u2028x\\x1b[6n ü ✓".encode() in seen
    assert b"a       b" in seen or b"a      b" in seen, "a tab is no attack, and not shown as one"


def test_raw_logs_reach_a_terminal_as_they_are(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["\x1b[1mtwo\x1b[0m"]
    assert cli.run_on_terminal("logs", "--raw", "web") == b"\x1b[1mtwo\x1b[0m\r\n"


def test_no_word_of_a_vm_controls_a_terminal(daemon: Canned, cli: Cli) -> None:
    """Whatever the daemon says of a VM, wherever the guest, its image or a client had a part in it."""
    cli.environment["NO_COLOR"] = "1"
    program = {
        "cmd": ["echo", HOSTILE],
        "entrypoint": [HOSTILE],
        "memory": HOSTILE,
        "env": {HOSTILE: HOSTILE},
    }
    words_of_others = ("image", "state_error", "status_text", "exit_message", "size", "network_name")
    vm = daemon.add(
        "web",
        **dict.fromkeys(words_of_others, HOSTILE),
        definition=program,
        tags={HOSTILE: HOSTILE},
        kernel_headers={"state": "failed", "error": HOSTILE},
        network={"enabled": True, "name": HOSTILE, "ip": HOSTILE, "group": HOSTILE, "publish": [HOSTILE]},
    )
    vm.lines = [HOSTILE]
    image = {"name": HOSTILE, "status": "failed", "error": HOSTILE, "tags": {HOSTILE: HOSTILE}}
    daemon.answers["GET /images"] = [image]
    for words in (
        ("list",), ("list", "-q"), ("status",), ("status", "web"), ("show", "web"),
        ("show", "--value", "-p", "tags", "web"), ("logs", "web"), ("top", "--once"), ("image", "list"),
    ):  # fmt: skip
        assert is_harmless(cli.run_on_terminal(*words)), words


def test_logs_pass_text_that_the_locale_cannot_show(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["ü ✓ \ud800"]
    cli.environment["LC_ALL"] = "C"
    cli.environment["PYTHONUTF8"] = "0"
    cli.environment["PYTHONCOERCECLOCALE"] = "0"
    assert cli.run("logs", "web").stdout == "ü ✓ ?\n"
    assert cli.run("status", "web").returncode == 0


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], {"tail": "all", "source": "app", "exact": "true"}),
        (["-n", "5"], {"tail": "5", "source": "app", "exact": "true"}),
        (["-n", "all", "--all"], {"tail": "all", "source": "app", "sentinels": "true", "exact": "true"}),
        (["-f", "--source", "vmm"], {"tail": "all", "source": "vmm", "follow": "true", "exact": "true"}),
        (["--timestamps"], {"tail": "all", "source": "app", "json": "true"}),
    ],
)
def test_logs_ask_for_what_was_asked(
    daemon: Canned, cli: Cli, words: list[str], query: dict[str, str]
) -> None:
    daemon.add("web").lines = ["x"]
    assert cli.run("logs", "web", *words).returncode == 0
    assert daemon.requests == [("GET", "/instances/web/logs", query, None)]


def test_logs_can_have_their_time_before_them(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["one"]
    assert cli.run("logs", "--timestamps", "web").stdout == "2026-03-01T10:00:00.250+00:00 one\n"


def test_logs_as_json_are_an_object_a_line(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["one\x1b", "two"]
    objects = [json.loads(line) for line in cli.run("logs", "--json", "web").stdout.splitlines()]
    assert [o["text"] for o in objects] == ["one\x1b", "two"]
    assert set(objects[0]) == {"time", "text", "invocation_id"}


def test_followed_lines_come_when_they_are_said(daemon: Canned, cli: Cli) -> None:
    more = threading.Event()

    def second() -> str:
        assert more.wait(60)
        return "two"

    daemon.add("web").lines = ["one", second]
    process = cli.start("logs", "-f", "web")
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    more.set()
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"two\n", 0)


def test_an_error_within_the_stream_is_told_after_the_lines(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["one", RuntimeError("the journal is gone")]
    done = cli.run("logs", "web")
    assert (done.stdout, done.returncode) == ("one\n", 1)
    assert done.stderr == "hypemanctl: the journal is gone\n"


def test_a_reader_that_leaves_early_is_no_error(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = [f"line {n}" * 20 for n in range(5000)]
    process = cli.start("logs", "web")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()


TIMELINE = {
    "vm": "web",
    "boot": "cd" * 16,
    "running_ms": 612.5,
    "spans": [
        {"name": "unit", "lane": "host", "start_ms": 0, "end_ms": 12.5},
        {"name": "kernel", "lane": "kernel", "start_ms": 12.5, "end_ms": 600},
    ],
}


def test_analyze_shows_the_boot(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.answers["GET /instances/web/timeline"] = TIMELINE
    done = cli.run("analyze", "web")
    assert done.returncode == 0
    assert "web" in done.stdout
    assert "kernel" in done.stdout
    assert "612" in done.stdout
    assert json.loads(cli.run("analyze", "web", "--json").stdout) == TIMELINE


def test_analyze_plot_is_an_svg(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.answers["GET /instances/web/timeline"] = TIMELINE
    done = cli.run("analyze", "plot", "web")
    assert done.stdout.lstrip().startswith(("<svg", "<?xml"))
    assert done.stdout.endswith("</svg>\n")


def test_analyze_of_what_never_booted_is_5(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    body = {"code": "invalid_state", "message": "web was not started yet"}
    daemon.answers["GET /instances/web/timeline"] = Failure(409, body)
    assert cli.run("analyze", "web").returncode == 11
