# SPDX-License-Identifier: Apache-2.0
"""What a cluster runs is known from its configuration, and nothing else may start it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypemand.config.pacemaker import find_owned, find_start_problems
from hypemand.config.vmdef import parse_definition
from hypemand.errors import HypemandError

CIB = """\
<cib><configuration><resources>
  <template id="vm" class="ocf" provider="hypemand" type="vm"/>
  <primitive id="r-web" class="ocf" provider="hypemand" type="vm">
    <instance_attributes id="a"><nvpair id="b" name="name" value="web"/></instance_attributes>
  </primitive>
  <group id="shop"><primitive id="r-db" template="vm">
    <instance_attributes id="c"><nvpair id="d" name="name" value="db"/></instance_attributes>
  </primitive></group>
  <primitive id="r-old" class="systemd" type="hypeman@old"/>
  <primitive id="ip" class="ocf" provider="heartbeat" type="IPaddr2">
    <instance_attributes id="e"><nvpair id="f" name="name" value="free"/></instance_attributes>
  </primitive>
  <primitive id="www" class="systemd" type="apache2"/>
</resources></configuration></cib>
"""
WEB = "/etc/hypemand/vms.d/web.yaml"
DISABLE = "systemctl disable hypeman@db.service"
ALONE = "its saved memory would be on this host alone"
OWNED = {"web": "r-web", "db": "r-db", "old": "r-old"}


def test_resources_are_vms_by_their_agent_their_template_or_their_unit(tmp_path: Path) -> None:
    cib = tmp_path / "cib.xml"
    assert find_owned(cib) == {}
    cib.write_text(CIB)
    assert find_owned(cib) == OWNED


def test_a_configuration_that_cannot_be_read_is_no_cluster_without_vms(tmp_path: Path) -> None:
    (tmp_path / "cib.xml").write_text("<cib>")
    with pytest.raises(HypemandError, match=r"cib\.xml cannot be read"):
        find_owned(tmp_path / "cib.xml")


def test_what_starts_a_vm_beside_the_cluster_is_named_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "multi-user.target.wants/hypeman@db.service").symlink_to("/nowhere")
    keys: dict[str, dict[str, object]] = {
        "web": {"autostart": True},
        "db": {},
        "old": {"on_host_shutdown": "standby"},
        "free": {"autostart": True, "on_host_shutdown": "standby"},
    }
    definitions = {name: parse_definition(name, {"image": "x", **given}) for name, given in keys.items()}
    files = {"web": Path(WEB)}
    found = [str(one) for one in find_start_problems(definitions, files, OWNED, tmp_path)]
    of = "is run by the cluster, as its resource"
    assert found == [
        f"db: hypeman@db.service is enabled, but VM db {of} r-db, which alone starts it; {DISABLE}",
        f"old: on_host_shutdown: is standby, but VM old {of} r-old, and {ALONE}; remove it",
        f"{WEB}: autostart: is true, but VM web {of} r-web, which alone starts it; remove it",
    ]
