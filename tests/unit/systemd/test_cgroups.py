# SPDX-License-Identifier: Apache-2.0
"""Where a process finds its own control group, in every way that they are mounted."""

import pytest

from hypemand.systemd.cgroups import find_own_groups

V2 = "/sys/fs/cgroup"
BESIDE_V1 = "/sys/fs/cgroup/unified"
OF_SYSTEMD = "/sys/fs/cgroup/systemd"


@pytest.mark.parametrize(
    ("memberships", "expected"),
    [
        ("0::/a.slice/b.service\n", [f"{V2}/a.slice/b.service", f"{BESIDE_V1}/a.slice/b.service"]),
        ("0::/\n", [V2, BESIDE_V1]),
        ("9:memory:/m\n1:name=systemd:/a:b/c\n0::/d\n", [f"{V2}/d", f"{BESIDE_V1}/d", f"{OF_SYSTEMD}/a:b/c"]),
        ("3:cpu,cpuacct:/x\n1:name=systemd:/x\n", [f"{OF_SYSTEMD}/x"]),
        ("", []),
    ],
)
def test_the_group_of_a_process(memberships: str, expected: list[str]) -> None:
    assert [str(group) for group in find_own_groups(memberships)] == expected
