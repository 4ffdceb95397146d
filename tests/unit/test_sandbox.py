# SPDX-License-Identifier: Apache-2.0
"""One list of what is held back from all that works on hostile data. What the sandboxes hold back is for the
test host."""

from __future__ import annotations

import re

import pytest

from hypemand.sandbox import OWN_ROOT, derive_sandbox, name_of
from hypemand.storage import replay, tools
from hypemand.systemd import sandbox
from tests.lint.sources import TOP

ALL = derive_sandbox()
# For each unit what it does without of the list, and why it must.
TAKEN_AWAY = {
    "VMM": (
        sandbox._SANDBOX,
        {
            *("ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
            "RestrictNamespaces",
        },
    ),
    # it talks to registries
    "fetch": (tools._FETCH, {"PrivateNetwork", "RestrictAddressFamilies", "UMask"}),
    # it makes the files of others, with their owners, modes and devices
    "build": (
        tools._BUILD,
        {"CapabilityBoundingSet", "PrivateDevices", "ProtectProc", "RestrictSUIDSGID", "UMask"},
    ),
    "replay": (replay._SANDBOX, set()),
}


@pytest.mark.parametrize("unit", TAKEN_AWAY)
def test_nothing_else_is_taken_away(unit: str) -> None:
    settings, taken = TAKEN_AWAY[unit]
    assert {name_of(setting) for setting in ALL if setting not in settings} == taken


def test_what_is_added_comes_after_the_list() -> None:
    settings = derive_sandbox("SystemCallFilter=seccomp", "UMask=0022", without={"UMask"})
    assert settings[-2:] == ("SystemCallFilter=seccomp", "UMask=0022")
    assert "UMask=0077" not in settings


def test_a_setting_is_not_replaced_silently() -> None:
    with pytest.raises(ValueError, match="UMask is in the list already"):
        derive_sandbox("UMask=0022")
    with pytest.raises(ValueError, match="no PrivateNet to take away"):
        derive_sandbox(without={"PrivateNet"})


def test_a_root_of_its_own_is_undone_by_no_setting_for_it() -> None:
    for settings, _ in TAKEN_AWAY.values():
        names = [name_of(setting) for setting in settings]
        assert not (set(OWN_ROOT) <= set(settings) and "ProtectSystem" in names)


def test_a_vmm_has_on_the_bus_what_the_list_says() -> None:
    properties = sandbox.sandbox_properties(kvm=False)
    assert [name for name, _, _ in properties] == [name_of(setting) for setting in sandbox._SANDBOX]
    values = {name: (signature, value) for name, signature, value in properties if name != "SystemCallFilter"}
    assert values["NoNewPrivileges"] == ("b", True)
    assert values["CapabilityBoundingSet"] == values["AmbientCapabilities"] == ("t", 0)
    assert values["UMask"] == ("u", 0o077)
    assert values["ProtectProc"] == ("s", "invisible")
    assert values["SystemCallErrorNumber"] == ("i", 1)
    assert values["RestrictNamespaces"] == ("t", 0x04000000)
    assert values["RestrictAddressFamilies"] == ("(bas)", (True, ["AF_UNIX"]))
    assert values["LimitNOFILE"] == ("t", 1024)
    filters = [value for name, _, value in properties if name == "SystemCallFilter"]
    assert filters[0] == (True, ["@system-service"])
    assert filters[-1] == (True, ["seccomp"])
    denied = {word for allowed, words in filters if not allowed for word in words}
    assert {"@privileged", "@resources", "@mount", "io_uring_setup", "userfaultfd"} <= denied
    assert all(type(value) is not str or value not in ("yes", "no") for _, value in values.values())


def test_one_module_calls_systemd_run() -> None:
    found = [
        path.name for path in (TOP / "hypemand").rglob("*.py") if re.search('"systemd-run"', path.read_text())
    ]
    assert found == ["unitrun.py"]
