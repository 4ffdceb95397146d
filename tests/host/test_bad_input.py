# SPDX-License-Identifier: Apache-2.0
"""What users, files and hosts get wrong: refused with place and cure, and nothing is made on the way."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.host.faults import (
    BUSYBOX,
    DROPIN,
    SMALL,
    SMALL_DEFINITION,
    VM_DIR,
    Vm,
    check_gone,
    ctl,
    define_vm,
    find_traces,
    host_config,
    start_vm,
    write_definition,
)
from tests.host.machine import TestHost

pytestmark = pytest.mark.one_release


@contextlib.contextmanager
def definition_files(host: TestHost, **texts: str) -> Iterator[str]:
    """Definition files by name, and a reload; gives what it said. The files are gone at the end."""
    for name, text in texts.items():
        write_definition(host, name, text)
    try:
        yield ctl(host, "reload", check=False).stderr
    finally:
        host.run(["rm", "-f", *(f"{VM_DIR}/{name}.yaml" for name in texts)])
        ctl(host, "reload")
        for name in texts:
            ctl(host, "rm", "-f", name)


@pytest.fixture(scope="module")
def bystander(host: TestHost) -> Iterator[Vm]:
    """A VM from a file that runs and that nobody's mistake may disturb."""
    with define_vm(host, "bystander", cmd=["sleep", "infinity"]) as vm:
        vm.ctl("start", "--wait")
        yield vm
        assert vm.show()["state"] == "Running"


# definition files


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("image: builtin:busybox\nmemry: 1G\n", "2:1", r"memry: .*memory"),
        ("image: builtin:busybox\nvcpus: two\n", "2:8", r"vcpus: .*whole number|integer"),
        ("image: builtin:busybox\nmemory: 1X\n", "2:9", r"memory: "),
        ("image: builtin:busybox\nmemory: 1M\n", "2:9", r"memory: .*64M"),
        ("image: builtin:busybox\nname: other\n", "2:7", r"name: "),
        ("image: builtin:busybox\ncmd: [sh\n", None, r"(?s)"),
        ("memory: 128M\n", "1:1", r"image: .*missing"),
        (
            "image: builtin:busybox\nunit: {ExecStart: /bin/sh}\n",
            "2:8",
            r"unit.ExecStart: cannot be set here",
        ),
        ("image: builtin:busybox\nentrypoint: []\ncmd: []\n", "3:6", r"cmd: is empty, and so is entrypoint"),
        ("", "1:1", r"is empty"),
    ],
    ids=[
        "unknown key",
        "type",
        "size",
        "too small",
        "other name",
        "syntax",
        "no image",
        "unit",
        "no program",
        "empty",
    ],
)
def test_a_broken_file_is_told_with_its_place_and_harms_no_other(
    host: TestHost, bystander: Vm, text: str, place: str | None, words: str
) -> None:
    path = f"{VM_DIR}/broken.yaml"
    with definition_files(host, broken=text) as told:
        (line,) = [line for line in told.splitlines() if path in line]
        assert re.search(words, line)
        if place is not None:
            assert f"{path}:{place}: " in line
        checked = ctl(host, "check", path, check=False)
        assert checked.code == 8
        assert line.removeprefix("hypemanctl: ") in checked.stderr
        journal = "\n".join(entry["MESSAGE"] for entry in host.journal("-u", "hypemand", f"CODE_FILE={path}"))
        assert line.removeprefix("hypemanctl: ") in journal
        assert ctl(host, "show", "broken", check=False).code == 10
        check_gone(host, "broken")
    assert bystander.show()["state"] == "Running"


def test_all_problems_of_a_file_are_told_at_once(host: TestHost) -> None:
    host.push("/srv/check/many.yaml", "image: 3\nmemry: 1G\nvcpus: 0\ndisk: x\n")
    checked = ctl(host, "check", "/srv/check/many.yaml", check=False)
    assert checked.code == 8
    assert [re.sub(r"^.*many.yaml:(\d+):.*$", r"\1", line) for line in checked.stderr.splitlines()] == list(
        "1234"
    )
    document = ctl(host, "check", "--json", "/srv/check/many.yaml", check=False)
    assert [problem["line"] for problem in json.loads(document.stdout)["problems"]] == [1, 2, 3, 4]


def test_a_name_that_two_files_define_is_neither_defined_nor_removed(host: TestHost) -> None:
    with define_vm(host, "twice", cmd=["sleep", "infinity"]) as vm:
        vm.ctl("start", "--wait")
        host.push(f"{VM_DIR}/twice.yml", "image: builtin:busybox\n")
        try:
            told = ctl(host, "reload", check=False)
            assert told.code == 8
            both = f"twice is defined twice, in {VM_DIR}/twice.yaml and {VM_DIR}/twice.yml; remove one"
            assert both in told.stderr
            assert ctl(host, "check", check=False).code == 8
            assert vm.show()["state"] == "Running"
        finally:
            host.run(["rm", f"{VM_DIR}/twice.yml"])
        assert ctl(host, "reload").ok


def test_a_name_that_the_api_has_taken_is_not_given_to_a_file(host: TestHost) -> None:
    with (
        start_vm(host, "taken", "sleep", "infinity") as vm,
        definition_files(host, taken="image: builtin:busybox\n") as told,
    ):
        assert "a VM taken was already created with the API" in told
        assert vm.show()["origin"] == "api"
        vm.wait("Running")
    check_gone(host, "taken")


@pytest.mark.parametrize("name", ["-x", "Über", "a" * 64, "UPPER", "under_score", "dot.dot"])
def test_a_bad_name_is_refused_in_a_file_and_on_the_command_line(host: TestHost, name: str) -> None:
    path = f"/srv/check/{name}.yaml"
    host.push(path, "image: builtin:busybox\n")
    checked = ctl(host, "check", path, check=False)
    assert checked.code == 8
    assert "1 to 63 characters of a-z, 0-9 and '-'" in checked.stderr
    refused = ctl(host, "run", "-d", f"--name={name}", BUSYBOX, check=False)
    assert refused.code == 125
    assert "1 to 63 characters of a-z, 0-9 and '-'" in refused.stderr
    assert host.run(["ls", "/var/lib/hypemand/vms"]).stdout.find(name) == -1


# what a VM needs


def assert_refused(host: TestHost, vm: Vm, code: int, words: str) -> None:
    """Neither start nor systemctl nor run get anywhere, and nothing is made."""
    refused = vm.ctl("start", check=False)
    assert (refused.code, bool(re.search(words, refused.stderr))) == (code, True), refused.describe()
    assert find_only_record(host, vm.name) == ["vm.json"]
    job = host.run(["systemctl", "start", f"hypeman@{vm.name}.service"], check=False)
    assert not job.ok
    host.run(["systemctl", "reset-failed", f"hypeman@{vm.name}.service"])
    journal = "\n".join(entry["MESSAGE"] for entry in host.journal("-u", "hypemand", f"HYPEMAN_VM={vm.name}"))
    assert re.search(f"VM {vm.name} was not started: .*{words}", journal)
    shown = vm.show()
    assert shown["state"] == "Stopped"


def find_only_record(host: TestHost, name: str) -> list[str]:
    """What is in the state folder of a VM that has no unit and no runtime folder."""
    traces = [t for t in find_traces(host, name) if not t.startswith("/var/lib/") and "/run/userdb" not in t]
    assert traces == []
    return host.run(["ls", f"/var/lib/hypemand/vms/{name}"]).stdout.split()


def assert_run_refused(host: TestHost, words: str, *options: str, image: str = BUSYBOX) -> None:
    """`run` is refused and has made nothing at all."""
    before = host.run(["ls", "/var/lib/hypemand/vms", "/run/hypemand/vms", "/run/userdb"]).stdout
    refused = ctl(host, "run", "--name=refused", *SMALL, *options, image, "true", check=False)
    assert (refused.code, bool(re.search(words, refused.stderr))) == (125, True), refused.describe()
    check_gone(host, "refused")
    assert host.run(["ls", "/var/lib/hypemand/vms", "/run/hypemand/vms", "/run/userdb"]).stdout == before


def test_an_image_that_is_not_there_is_refused_with_the_nearest_name(host: TestHost) -> None:
    words = r"there is no image builtin:busibox; did you mean builtin:busybox\?"
    with define_vm(host, "wanting", image="builtin:busibox") as vm:
        assert_refused(host, vm, 10, words)
    assert_run_refused(host, words, image="builtin:busibox")


def test_more_memory_than_the_host_has_is_refused_with_the_figures(host: TestHost) -> None:
    words = r"wants 1T of memory, but .* are left: the host has .*; lower memory"
    with define_vm(host, "wanting", memory="1T") as vm:
        assert_refused(host, vm, 9, words)
    assert_run_refused(host, words, "--memory=1T")


def test_memory_that_other_vms_hold_counts(host: TestHost, bystander: Vm) -> None:
    total = int(re.search(r"MemTotal: +(\d+)", host.pull("/proc/meminfo").decode())[1]) // 1024  # type: ignore[index]
    with host_config(host, memory={"reserve": f"{total - 300}M"}):
        with start_vm(host, "fits") as vm:
            vm.wait("Running")
            assert_run_refused(host, r"wants 128M of memory, but .* are left.*active VMs hold 256M")
        with start_vm(host, "fits-again") as vm:
            vm.wait("Running")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("qemu", r"there is no QEMU at /nowhere; install the package qemu-system-x86"),
        ("kernel_dir", r"there is no guest kernel in /nowhere; install the package hypemand-kernel"),
        (
            "guest_dir",
            r"there is no guest initrd at /nowhere/initrd.cpio; install the package hypemand-guest",
        ),
    ],
)
def test_a_part_that_the_host_lacks_is_named_with_its_package(host: TestHost, key: str, words: str) -> None:
    with host_config(host, **{key: "/nowhere"}):
        with define_vm(host, "wanting") as vm:
            assert_refused(host, vm, 9, words)
        assert_run_refused(host, words)
        checked = ctl(host, "check", check=False)
        assert checked.code != 0
        assert re.search(words.partition(";")[0], checked.stdout + checked.stderr)
    assert ctl(host, "check").ok


def test_a_qemu_that_was_removed_is_missed_and_found_again(host: TestHost) -> None:
    host.run(["mv", "/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-away"])
    try:
        assert_run_refused(host, "there is no QEMU at /usr/bin/qemu-system-x86_64; install")
    finally:
        host.run(["mv", "/usr/bin/qemu-away", "/usr/bin/qemu-system-x86_64"])
    assert ctl(host, "run", "--rm", *SMALL, BUSYBOX, "true").ok


@pytest.mark.both_releases
def test_a_qemu_that_fails_fails_the_unit_with_its_own_words(host: TestHost) -> None:
    host.push("/srv/bad-qemu", "#!/bin/sh\necho 'qemu-system-x86_64: no bananas' >&2\nexit 1\n", 0o755)
    with host_config(host, qemu="/srv/bad-qemu"), start_vm(host, "wanting", "true") as vm:
        shown = vm.end()
        assert shown["exit_message"] == "the VMM failed with exit status 1: no bananas"
        assert vm.unit("ActiveState") == "failed"


def test_a_disk_does_not_shrink_and_keeps_its_data(host: TestHost) -> None:
    with define_vm(host, "shrinks", cmd=["sleep", "infinity"], disk="128M") as vm:
        vm.ctl("start", "--wait")
        vm.exec("sh", "-c", "echo precious >/root/data")
        vm.ctl("stop")
        write_definition(host, "shrinks", {**SMALL_DEFINITION, "cmd": ["sleep", "infinity"], "disk": "64M"})
        ctl(host, "reload")
        refused = vm.ctl("start", check=False)
        assert refused.code == 8
        assert re.search(r"disk: 64M is less than .*a disk cannot shrink; write \d+M or more", refused.stderr)
        assert vm.end()["state"] == "Stopped"
        write_definition(host, "shrinks", {**SMALL_DEFINITION, "cmd": ["sleep", "infinity"], "disk": "256M"})
        ctl(host, "reload")
        vm.ctl("start", "--wait")
        assert vm.exec("cat", "/root/data").stdout == "precious\n"
        assert int(vm.exec("sh", "-c", "df -m / | awk 'NR==2 {print $2}'").stdout) > 200


# host configuration


def test_a_broken_host_config_is_told_and_the_one_before_stays(host: TestHost, bystander: Vm) -> None:
    host.push(DROPIN, "accel: warp\nmemory: {reserv: 1G}\n")
    try:
        told = ctl(host, "reload", check=False)
        assert told.code == 8
        assert f"{DROPIN}:1:8: accel: " in told.stderr
        assert f"{DROPIN}:2:10: memory.reserv: " in told.stderr
        assert ctl(host, "check", check=False).code == 8
        assert ctl(host, "run", "--rm", *SMALL, BUSYBOX, "true").ok
        restart = host.run(["systemctl", "restart", "hypemand.service"], check=False)
        assert not restart.ok
        journal = "\n".join(entry["MESSAGE"] for entry in host.journal("-u", "hypemand", "-n", "40"))
        assert f"{DROPIN}:1:8: accel: " in journal
    finally:
        host.run(["rm", DROPIN])
        # stopped first: systemd is about to restart what has failed
        host.run(["systemctl", "stop", "hypemand.service", "hypemand.socket"])
        host.run(["systemctl", "reset-failed", "hypemand.service", "hypemand.socket"], check=False)
        host.run(["systemctl", "start", "hypemand.service"])
    assert bystander.show()["state"] == "Running"
    assert bystander.exec("echo", "alive").stdout == "alive\n"


# the command line


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        [],
        ["start"],
        ["show"],
        ["list", "--frob"],
        ["wait", "x", "--for", "Sunday"],
        ["wait", "x", "--timeout", "soon"],
        ["logs", "x", "-n", "-3"],
        ["kill", "x", "-s", "BANANA"],
        ["analyze"],
        ["image", "frob"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told_with_the_right_one(host: TestHost, words: list[str]) -> None:
    result = ctl(host, *words, check=False)
    assert (result.code, result.stdout) == (2, "")
    assert re.search(
        r"[Uu]sage: hypemanctl|See hypemanctl --help|unknown subcommand 'frob', one of: ", result.stderr
    )


def test_exit_codes_tell_not_found_wrong_state_and_late_apart(host: TestHost, bystander: Vm) -> None:
    for words in (
        ["show", "nobody"],
        ["start", "nobody"],
        ["stop", "nobody"],
        ["logs", "nobody"],
        ["wait", "nobody"],
    ):
        missing = ctl(host, *words, check=False)
        assert (missing.code, "there is no VM nobody" in missing.stderr) == (10, True), missing.describe()
    assert ctl(host, "image", "inspect", "nobody", check=False).code == 10
    late = bystander.ctl("wait", "--for=Stopped", "--timeout=100ms", check=False)
    assert (late.code, "Running" in late.stderr) == (12, True), late.describe()
    taken = ctl(host, "run", "-d", "--name=bystander", BUSYBOX, check=False)
    assert (taken.code, "a VM bystander already exists" in taken.stderr) == (125, True)
    kept = ctl(host, "rm", "-f", "bystander", check=False)
    assert (kept.code, f"is defined in {VM_DIR}/bystander.yaml" in kept.stderr) == (11, True), kept.describe()
    with define_vm(host, "resting") as vm:
        early = vm.ctl("wait", "--for=Running", check=False)
        assert (early.code, "Stopped" in early.stderr) == (11, True), early.describe()
        assert vm.ctl("status", check=False).code == 3
        assert vm.ctl("kill", check=False).code == 11
        refused = vm.exec("true", check=False)
        assert (refused.code, "Stopped" in refused.stderr) == (125, True)
        assert ctl(host, "list", "resting", "nobody", check=False).code == 10
    assert ctl(host, "--socket=/nowhere", "list", check=False).code == 13
    assert bystander.show()["state"] == "Running"


def test_several_names_are_all_tried_and_the_first_failure_counts(host: TestHost) -> None:
    with define_vm(host, "one", cmd=["sleep", "infinity"]) as vm:
        result = ctl(host, "start", "nobody", "one", "--wait", check=False)
        assert (result.code, "nobody" in result.stderr) == (10, True)
        assert vm.show()["state"] == "Running"
