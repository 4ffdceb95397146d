# SPDX-License-Identifier: Apache-2.0
"""What docs/metrics.md, the alert rules and the dashboard name are metrics that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from hypemand.histogram import Histogram
from hypemand.manager.metrics.counts import Counts
from hypemand.manager.metrics.families import list_metrics
from hypemand.manager.metrics.report import ImageReport, MetricsReport, VmReport
from hypemand.model.counters import Connections, Counters
from hypemand.model.metrics import ApiCounts
from hypemand.model.space import Room
from hypemand.model.state import State
from hypemand.systemd.usage import DiskUsage, UnitUsage

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "config/examples"
_NAME = re.compile(r"\bhypemand_[a-z_]+")


def make_report() -> MetricsReport:
    """One that has a sample of each metric."""
    counts = Counts()
    counts.restarts["web"] = 1
    usage = UnitUsage(1, 2.0, (DiskUsage("8:0", 1, 2, 3, 4),))
    return MetricsReport(
        version="1",
        states=dict.fromkeys(State, 1),
        broken=0,
        vms=(VmReport("web", "id", "builtin:app", 1, 1, usage, Counters(), Connections()),),
        counts=counts,
        volumes=(1,),
        disk_reserve=1,
        memory_committed=1,
        memory_allowed=1,
        pulls_in_progress=0,
        api=ApiCounts(Counter({("GET", "/health", "200"): 1})),
        turns=Histogram((1.0,)),
        images=ImageReport(1, 1),
        room=Room(Path("/"), 1, 1),
        dropped={"web": 1},
    )


def list_known() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Text and labels of each metric, by the name that it is documented by."""
    return {
        metric.name + ("_total" if metric.type == "counter" else ""): (
            metric.documentation,
            tuple(sorted(set().union(*(sample.labels for sample in metric.samples)) - {"le"})),
        )
        for metric in list_metrics(make_report())
    }


def render_table() -> str:
    """The table of docs/metrics.md."""
    known = list_known()
    rows = [
        f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {text} |"
        for name, (text, labels) in known.items()
    ]
    return "\n".join(["| metric | labels | description |", "|---|---|---|", *rows, ""])


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    text = (TOP / "docs/metrics.md").read_text()
    found = re.search(r"<!-- metrics: begin -->\n(.*)<!-- metrics: end -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == render_table(), "python3 -m tests.unit.test_examples prints it"


def _strip(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize("name", ["prometheus/hypemand.rules.yml", "grafana/hypemand.json"])
def test_expressions_name_metrics_that_there_are(name: str) -> None:
    names = {_strip(found) for found in _NAME.findall((EXAMPLES / name).read_text())}
    assert len(names) > 8
    assert names - set(list_known()) == set()


def test_each_alert_has_a_test_in_which_it_fires_and_a_word_for_people() -> None:
    folder = EXAMPLES / "prometheus"
    rules = [
        rule
        for group in yaml.safe_load((folder / "hypemand.rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    (tests,) = yaml.safe_load((folder / "hypemand.rules.test.yml").read_text())["tests"]
    fired = {test["alertname"] for test in tests["alert_rule_test"] if "exp_alerts" in test}
    assert fired == {rule["alert"] for rule in rules}
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((EXAMPLES / "grafana/hypemand.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 10
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


if __name__ == "__main__":
    print(render_table(), end="")
