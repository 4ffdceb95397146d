# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that need a real Debian system, and what a failing one leaves to read."""

import gc
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings

from tests.host.lab import start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.schedule import TESTS, Recorder, Scheduling, choose_releases, derive_group

HostFactory = Callable[..., TestHost]

# how long an example takes is no property of what it tests
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--suite",
        action="append",
        choices=[str(suite) for suite in Suite],
        help="run host tests on this Debian release only (may be repeated; default: all)",
    )
    parser.addoption("--long", action="store_true", help="run what is marked long, too (make test-cluster)")
    parser.addoption(
        "--warm",
        action="store_true",
        help="VMs of the shared host start from templates, where they can (make test-warm)",
    )
    parser.addoption(
        "--record-durations",
        action="store_true",
        help="write down how long each group of tests takes (tests/durations.json)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        chosen = [Suite(name) for name in metafunc.config.getoption("--suite") or list(Suite)]
        marked = metafunc.definition.get_closest_marker
        one = None if marked("both_releases") else marked("one_release")
        releases = choose_releases(metafunc.module.__name__, chosen, one)
        metafunc.parametrize("suite", releases, ids=str, scope="session")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())
    # a shell starts what it runs in the background with interrupts ignored, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "host: needs a booted Debian (set by itself where the fixture `suite` is used)"
    )
    config.addinivalue_line(
        "markers",
        "one_release(suite): on one of the releases, since nothing of it depends on what versions those have",
    )
    config.addinivalue_line("markers", "both_releases: on all of them, although its module is for one")
    config.addinivalue_line("markers", "long: takes minutes, and is run with --long alone")
    config.addinivalue_line(
        "markers", "netns: sends through the kernel, some for seconds (set by itself, as by `host_namespace`)"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    # before -m chooses
    fixtures = getattr(item, "fixturenames", ())
    callspec = getattr(item, "callspec", None)
    suite = callspec and callspec.params.get("suite")
    if suite:
        item.add_marker("host")
    case = callspec.id if callspec else ""
    item.add_marker(pytest.mark.xdist_group(derive_group(item.path.relative_to(TESTS), suite, case)))
    if "host_namespace" in fixtures:
        item.add_marker("netns")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a host comes last: a mistake that a linter or a unit test finds is shown first."""
    if not config.getoption("--long"):
        items[:] = [item for item in items if item.get_closest_marker("long") is None]
    items.sort(key=lambda item: item.get_closest_marker("host") is not None)


def pytest_collection_finish() -> None:
    """What has been loaded and collected lives as long as the process: the garbage collector, which tests
    keep busy, need not look at it again and again."""
    gc.collect()
    gc.freeze()


def count_starts(host: TestHost, stage: str) -> int:
    """The runs of VMs of which the journal has that stage."""
    fields = "HYPEMAN_STAGE,_SYSTEMD_INVOCATION_ID"
    stages = f"journalctl --unit='hypeman-vm-*' --output=json --output-fields={fields}"
    runs = """grep -o '"_SYSTEMD_INVOCATION_ID":"[0-9a-f]*"' | sort --unique | wc --lines"""
    return int(host.shell(f"{stages} | grep 'name={stage} ' | {runs}").stdout)


@pytest.fixture(scope="session")
def host(suite: Suite, pytestconfig: pytest.Config) -> Iterator[TestHost]:
    """A host with our packages installed that all tests of a suite share: leave it as you found it."""
    with start_host(suite) as shared:
        if not pytestconfig.getoption("--warm"):
            yield shared
            return
        shared.push("/etc/hypemand/hypemand.yaml.d/50-warm.yaml", "warm_start: {mode: auto}\n")
        shared.run(["systemctl", "reload", "hypemand"])
        yield shared
        # the first stage of a warm start, and of a boot
        warm, cold = (count_starts(shared, stage) for stage in ("thaw", "mounts"))
        print(f"{suite}: {warm} warm starts and {cold} boots", file=sys.stderr)
        assert warm > cold, "most of these tests were to be of warm starts"


@pytest.fixture
def fresh_host(suite: Suite) -> Iterator[HostFactory]:
    """Gives hosts of the test's own: `fresh_host()` with our packages, `fresh_host(installed=False)` without.

    `fresh_host(suite=...)` asks for another release, `binds=[...]` for paths of this machine to share.
    """
    with ExitStack() as stack:

        def start(*, suite: Suite = suite, installed: bool = True, binds: tuple[str, ...] = ()) -> TestHost:
            return stack.enter_context(start_host(suite, installed=installed, binds=binds))

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what went on in the hosts that it used."""
    report = yield
    if report.failed:
        for used in TestHost.live:
            if used.last_used >= call.start:
                report.sections.append((f"host {used.name}", used.report(since=call.start)))
    return report
