# SPDX-License-Identifier: Apache-2.0
"""No guest turns the host's journal over, or speaks to its terminals; what it says is found as ever."""

from __future__ import annotations

import base64
import json
import re
import time

import pytest

from tests.host.faults import host_config
from tests.host.machine import TestHost
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

MIB = 1024 * 1024
LINES = 100_000
NO_NETWORK = ("--network", "none", "--memory", "128M")
NOTICE = re.compile(r"hypeman-console: ([0-9]+) lines \(([0-9]+) bytes\) were not kept")
# Long lines, which journald's own limit does not bound, and short ones; then an end that must not get lost.
FLOOD = """
echo up
head -c 24000000 /dev/urandom | base64 -w 30000
seq 1 20000
echo last
exit 7
"""


def measure_journal(host: TestHost) -> int:
    """Bytes of entries in the journal, which is what pushes others out of it."""
    script = "journalctl --sync; journalctl -o export --no-pager | wc -c"
    return int(host.shell(script).stdout)


def test_a_flood_is_bounded_and_its_vm_is_found_as_any_other(host: TestHost, vms: Vms) -> None:
    limits = {"burst": "4M", "per_hour": "4M"}
    with host_config(host, journal=limits):
        before, since = measure_journal(host), time.time()
        vms.define("flood", FLOOD)
        vms.ctl("start", "flood")
        vms.wait("flood", "Stopped")
        grown = measure_journal(host) - before
        shown = vms.show("flood")
        found = {
            "unit": host.run(
                ["journalctl", "-u", "hypeman-vm-flood", "-o", "cat", f"--since=@{since:.0f}"]
            ).stdout,
            "field": host.run(
                ["journalctl", "HYPEMAN_VM=flood", "-o", "cat", f"--since=@{since:.0f}"]
            ).stdout,
            "logs": vms.ctl("logs", "flood").stdout,
        }
    assert grown < 16 * MIB, "entries have fields beside their text, and are a few thousand at most"
    for how, text in found.items():
        assert "up" in text.splitlines(), how
        assert sum(int(match[2]) for match in NOTICE.finditer(text)) > 20 * MIB, how
    # the console was over its limit; how the program ended is known all the same
    assert shown["exit_code"] == 7


def test_what_is_within_the_limits_is_all_there(host: TestHost, vms: Vms) -> None:
    vms.define("talks", "seq 1 5000; echo '  two  '; exit 3")
    vms.ctl("start", "talks")
    vms.wait("talks", "Stopped")
    lines = vms.ctl("logs", "talks").stdout.splitlines()
    assert lines[-1] == "  two  "
    assert [line for line in lines if line.isdecimal()] == [str(n) for n in range(1, 5001)]
    assert vms.show("talks")["exit_code"] == 3


@pytest.mark.both_releases
def test_the_last_words_are_in_the_journal_when_the_unit_has_ended(host: TestHost, vms: Vms) -> None:
    for _ in range(5):
        vms.define("brief", "seq 1 3000; echo bye; exit 5")
        vms.ctl("start", "brief")
        vms.wait("brief", "Stopped")
        assert vms.ctl("logs", "-n", "1", "brief").stdout == "bye\n"
        assert vms.show("brief")["exit_code"] == 5
        vms.undefine("brief")
        vms.ctl("rm", "-f", "brief", check=False)


def test_a_guests_priorities_are_text(host: TestHost, vms: Vms) -> None:
    since = time.time()
    vms.define("loud", "echo '<0>the host is on fire'; echo '<3>c'; exec sleep infinity")
    vms.ctl("start", "--wait", "loud")
    lines = ["<0>the host is on fire", "<3>c"]
    host.wait_until(lambda: lines[-1] in vms.console("loud"))
    assert [line for line in vms.console("loud") if line.startswith("<")] == lines
    entries = host.journal("HYPEMAN_VM=loud", since=since)
    said = {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries if entry.get("MESSAGE") in lines}
    assert said == dict.fromkeys(lines, "6")
    assert host.run(["journalctl", "-p", "0", f"--since=@{since:.0f}", "-o", "cat"]).stdout == ""


def test_the_vmm_has_no_way_into_the_journal_but_the_console(host: TestHost, vms: Vms) -> None:
    vms.run("plain")
    pid = vms.unit("plain", "MainPID")["MainPID"]
    ends = [host.run(["readlink", f"/proc/{pid}/fd/{number}"]).stdout.strip() for number in (1, 2)]
    assert ends[0].startswith("pipe:")
    assert ends[0] == ends[1]
    children = host.shell(f"cat /proc/{pid}/task/{pid}/children").stdout.split()
    names = {host.run(["cat", f"/proc/{child}/comm"]).stdout.strip() for child in children}
    assert "hypeman-console" not in names, "machinectl's signals go to the VMM's one child"
    uid = host.run(["stat", "-c", "%u", f"/proc/{pid}/mem"]).stdout
    consoles = host.run(["pgrep", "-U", uid.strip(), "-x", "hypeman-console"]).stdout.split()
    # the VMM has the same user, and no way into its memory
    owners = [host.run(["stat", "-c", "%u", f"/proc/{console}/mem"]).stdout for console in consoles]
    assert owners == ["0\n"] != [uid]


@pytest.mark.both_releases
def test_run_gives_all_lines_that_a_program_writes(host: TestHost, vms: Vms) -> None:
    # what waits at the end is passed on for as long as a stop may take: longer than a busy host needs
    slow = ["--stop-timeout", "2min"]
    words = ["builtin:busybox", "seq", "1", str(LINES)]
    done = vms.ctl("run", "--rm", *NO_NETWORK, *slow, *words, timeout=300)
    assert done.stderr == ""
    assert done.raw == b"".join(b"%d\n" % number for number in range(1, LINES + 1))


# blank lines, blanks, a priority, CR, NUL, ESC, no UTF-8, and a last line without its end
ODD = b"a\n\n  b  \n\n\n<3>c\n\r\n\td\r\ne\0f\n\x1b[1mg\n\xff\n" + b"x" * 100_000 + b"\nlast"
SAYS_ODD = (
    r"printf 'a\n\n  b  \n\n\n<3>c\n\r\n\td\r\ne\0f\n\033[1mg\n\377\n';"
    " head -c 100000 /dev/zero | tr '\\0' x; printf '\\nlast'"
)


@pytest.mark.both_releases
def test_lines_are_what_the_guest_wrote(host: TestHost, vms: Vms) -> None:
    done = vms.ctl(
        "run", "--name", "odd", *NO_NETWORK, "--no-kernel-headers", "builtin:busybox", "sh", "-c", SAYS_ODD
    )
    try:
        assert (done.raw, done.stderr) == (ODD, "")
        assert vms.ctl("logs", "odd").raw == ODD
        events = [json.loads(line) for line in vms.ctl("logs", "--json", "odd").stdout.splitlines()]
        said = [
            base64.b64decode(event["base64"]) if event["base64"] else event["text"].encode()
            for event in events
        ]
        assert b"\n".join(said) == ODD
        # and of the unit, as every service's
        entries = host.journal("_SYSTEMD_UNIT=hypeman-vm-odd.service", "SYSLOG_IDENTIFIER=odd")
        assert {entry["_SYSTEMD_INVOCATION_ID"] for entry in entries} == {events[0]["invocation_id"]}
        # -t: what systemd and the daemon say of the unit may stand between the guest's lines
        plain = host.run(["journalctl", "-u", "hypeman-vm-odd", "-t", "odd", "-o", "cat", "--all"]).raw
        assert ODD.replace(b"\r\n", b"\n") in plain
        assert b"HYPEMAN-STAGE" not in plain, "how long the parts of a boot took is for analyze"
    finally:
        vms.ctl("rm", "-f", "odd")


@pytest.mark.both_releases
def test_what_journald_drops_is_counted(host: TestHost, vms: Vms) -> None:
    vms.define("limited", "seq 1 5000", unit={"LogRateLimitBurst": 100, "LogRateLimitIntervalSec": "1h"})
    vms.ctl("start", "limited")
    vms.wait("limited", "Stopped")
    events = [json.loads(line) for line in vms.ctl("logs", "--json", "limited").stdout.splitlines()]
    kept = [event["text"] for event in events if not event["missing"]]
    missing = [event for event in events if event["missing"]]
    assert kept == [str(number) for number in range(1, len(kept) + 1)]
    assert 50 < len(kept) < 2000, "journald allows some times the burst, by the space that it has"
    assert len(kept) + sum(event["missing"] for event in missing) == 5000
    assert f"{5000 - len(kept)} lines were not kept" in vms.ctl("logs", "limited").stdout
