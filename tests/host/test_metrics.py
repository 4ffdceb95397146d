# SPDX-License-Identifier: Apache-2.0
"""Metrics of a real host, as Debian's Prometheus scrapes them, and the examples of its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

_EXAMPLES = "/usr/share/doc/hypemand/examples/prometheus"
_DROPIN = "/etc/hypemand/hypemand.yaml.d/metrics.yaml"
_PORT = 9091
_FETCH = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())"
_COUNTED = ("hypemand_vm_starts_total", "hypemand_vm_initializing_seconds_count")
_CONFIG = f"""\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: hypemand
    static_configs:
      - targets: ["127.0.0.1:9442"]
rule_files: [{_EXAMPLES}/hypemand.rules.yml]
"""


def fetch(host: TestHost, url: str) -> str:
    return host.run(["/usr/bin/python3", "-c", _FETCH, url]).stdout


def query(host: TestHost, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and values, as Prometheus knows them now."""
    answer = json.loads(fetch(host, f"http://127.0.0.1:{_PORT}/api/v1/query?query={quote(expression)}"))
    return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]


@pytest.fixture
def scraped(vms: Vms) -> Iterator[Vms]:
    """A host whose daemon Prometheus scrapes each second."""
    host = vms.host
    host.push(_DROPIN, "metrics: {listen: 127.0.0.1:9442}\n")
    host.push("/root/prometheus.yml", _CONFIG)
    try:
        vms.reload()
        options = f"--storage.tsdb.path=/run/test-prometheus --web.listen-address=127.0.0.1:{_PORT}"
        host.shell(
            f"systemd-run --unit=test-prometheus prometheus --config.file=/root/prometheus.yml {options}"
        )
        yield vms
    finally:
        host.run(["systemctl", "stop", "test-prometheus.service"], check=False)
        host.run(["rm", "-rf", _DROPIN, "/root/prometheus.yml", "/run/test-prometheus"])
        vms.reload()


def test_prometheus_scrapes_a_host_and_knows_what_its_vms_do(scraped: Vms) -> None:
    host = scraped.host
    before = fetch(host, "http://127.0.0.1:9442/metrics")
    # apart: a start of another test that failed is in the one and not in the other
    counted = {name: float(find(before, f'{name}{{kind="request"}}')) for name in _COUNTED}
    scraped.run("meter", network="default")
    text = fetch(host, "http://127.0.0.1:9442/metrics")
    host.push("/root/metrics.txt", text)
    assert host.shell("promtool check metrics </root/metrics.txt").stdout == ""

    def knows() -> list[tuple[dict[str, str], float]]:
        return query(host, 'hypemand_vm_memory_bytes{vm="meter"}')

    def counts() -> bool:
        now = {name: query(host, f'{name}{{kind="request"}}')[0][1] for name in _COUNTED}
        return now == {name: count + 1 for name, count in counted.items()}

    host.wait_until(knows)
    host.wait_until(counts)
    ((labels, memory),) = knows()
    assert labels["job"] == "hypemand"
    assert memory > 10 * 2**20
    assert query(host, 'up{job="hypemand"}')[0][1] == 1.0
    assert query(host, 'hypemand_vms{state="Running"}')[0][1] >= 1.0
    assert query(host, 'hypemand_vm_cpu_seconds_total{vm="meter"}')[0][1] > 0.1
    assert query(host, 'hypemand_vm_network_receive_bytes_total{vm="meter"}')[0][1] >= 0.0
    assert query(host, 'sum(hypemand_api_requests_total{route="/metrics"})')[0][1] >= 1.0
    assert query(host, "process_resident_memory_bytes")[0][1] > 20 * 2**20
    rules = json.loads(fetch(host, f"http://127.0.0.1:{_PORT}/api/v1/rules"))["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}


def test_the_examples_are_what_promtool_takes(host: TestHost) -> None:
    tested = host.shell(f"cd {_EXAMPLES} && promtool test rules hypemand.rules.test.yml")
    assert "SUCCESS" in tested.stdout
    host.shell(f"promtool check config --syntax-only {_EXAMPLES}/scrape.yml")


def find(text: str, sample: str) -> str:
    """The value of a sample."""
    return next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{sample} "))
