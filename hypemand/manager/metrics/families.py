# SPDX-License-Identifier: Apache-2.0
"""Writes a report in Prometheus' text format. Imported with the first scrape: a daemon that nobody scrapes
does not need the library."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from hypemand.histogram import Histogram
from hypemand.manager.metrics.report import MetricsReport, VmReport
from hypemand.model.events import FailureReason, StartKind
from hypemand.model.exits import ExitKind
from hypemand.model.images import PullStatus

_PAUSE = 0.0001

Rows = Sequence[tuple[tuple[str, ...], float]]
Histograms = Sequence[tuple[tuple[str, ...], Histogram]]


def render(report: MetricsReport) -> bytes:
    """The report as text. Blocks: for a thread."""
    registry = CollectorRegistry()
    registry.register(_Collector(report))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, report: MetricsReport) -> None:
        self._report = report

    def describe(self) -> Iterable[Metric]:
        return ()  # else it would be collected to find out

    def collect(self) -> Iterator[Metric]:
        for metric in list_metrics(self._report):
            yield metric
            # the event loop has Python's lock in between, and waits for one metric rather than for all
            time.sleep(_PAUSE)


def list_metrics(report: MetricsReport) -> Iterator[Metric]:
    """All but those of the daemon's process."""
    yield from _list_states(report)
    yield from _list_runs(report)
    yield from _list_usage(report.vms)
    yield from _list_traffic(report.vms)
    yield from _list_host(report)
    yield from _list_daemon(report)


def _gauge(name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
    family = GaugeMetricFamily(f"hypemand_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
    """`_total` is added to its name."""
    family = CounterMetricFamily(f"hypemand_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _histogram(name: str, text: str, rows: Histograms, labels: Sequence[str] = ()) -> Metric:
    family = HistogramMetricFamily(f"hypemand_{name}", text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, histogram.list_buckets(), histogram.total)
    return family


def _by_kind(histograms: Mapping[StartKind, Histogram]) -> Histograms:
    return [((kind.value,), histogram) for kind, histogram in histograms.items()]


def _list_states(report: MetricsReport) -> Iterator[Metric]:
    rows = [((state.value,), float(number)) for state, number in report.states.items()]
    yield _gauge("vms", "VMs that are defined, by their state.", rows, ["state"])
    text = "VMs that are not defined because their files have errors."
    yield _gauge("broken_definitions", text, [((), report.broken)])


def _list_runs(report: MetricsReport) -> Iterator[Metric]:
    counts = report.counts
    starts = [((kind.value,), float(counts.starts[kind])) for kind in StartKind]
    text = "Runs of VMs that have begun, by what has started them."
    yield _counter("vm_starts", text, starts, ["kind"])
    known = {(reason.value, ""): 0 for reason in FailureReason if reason is not FailureReason.BOOT_TIMEOUT}
    failures = [(key, float(number)) for key, number in {**known, **counts.failures}.items()]
    text = "VMs that were not started or have not become Running, by reason and missing boot marker."
    yield _counter("vm_start_failures", text, failures, ["reason", "marker"])
    exits = [((kind.value,), float(counts.exits[kind])) for kind in ExitKind]
    yield _counter("vm_exits", "Runs of VMs that have ended, by how they ended.", exits, ["kind"])
    restarts = [((name,), float(number)) for name, number in sorted(counts.restarts.items())]
    yield _counter("vm_restarts", "Restarts of a VM by its unit's Restart=.", restarts, ["vm"])
    text = "Time from the start of the VMM until the VM was Running (states Created and Initializing)."
    yield _histogram("vm_initializing_seconds", text, _by_kind(counts.initializing), ["kind"])
    text = "Time from the request of a start until the VM was Running, without pulls and other units."
    yield _histogram("vm_ready_seconds", text, _by_kind(counts.ready), ["kind"])


def _list_usage(vms: Sequence[VmReport]) -> Iterator[Metric]:
    """What the VMs of which a VMM is active use of the host."""
    text = "A VM whose VMM is active: always 1."
    rows: Rows = [((vm.name, vm.vm_id, vm.image), 1.0) for vm in vms]
    yield _gauge("vm_info", text, rows, ["vm", "id", "image"])
    rows = [((vm.name,), float(vm.memory)) for vm in vms]
    yield _gauge("vm_guest_memory_bytes", "Memory that the guest has.", rows, ["vm"])
    yield _gauge("vm_vcpus", "CPUs that the guest has.", [((vm.name,), vm.vcpus) for vm in vms], ["vm"])
    used = [(vm.name, vm.usage) for vm in vms if vm.usage is not None]
    rows = [((name,), float(usage.memory)) for name, usage in used if usage.memory is not None]
    text = "Memory of the host that the VM's unit uses, with its page cache."
    yield _gauge("vm_memory_bytes", text, rows, ["vm"])
    rows = [((name,), usage.cpu_seconds) for name, usage in used if usage.cpu_seconds is not None]
    yield _counter("vm_cpu_seconds", "CPU time that the VM's unit has used in this run.", rows, ["vm"])
    for metric, field, text in (
        ("vm_io_read_bytes", "read_bytes", "Bytes that the VM's unit has read from a disk of the host."),
        ("vm_io_written_bytes", "written_bytes", "Bytes that the VM's unit has written to a disk."),
        ("vm_io_reads", "reads", "Reads of the VM's unit from a disk of the host."),
        ("vm_io_writes", "writes", "Writes of the VM's unit to a disk of the host."),
    ):
        rows = [
            ((name, disk.device), float(getattr(disk, field))) for name, usage in used for disk in usage.disks
        ]
        yield _counter(metric, text, rows, ["vm", "device"])


def _list_traffic(vms: Sequence[VmReport]) -> Iterator[Metric]:
    counted = [(vm.name, vm.network) for vm in vms if vm.network is not None]
    for metric, field, text in (
        ("vm_network_transmit_bytes", "sent_bytes", "Bytes that the VM has sent."),
        ("vm_network_receive_bytes", "received_bytes", "Bytes that the VM has received."),
        ("vm_network_transmit_packets", "sent_packets", "Packets that the VM has sent."),
        ("vm_network_receive_packets", "received_packets", "Packets that the VM has received."),
        ("vm_network_dropped_packets", "dropped_packets", "Packets dropped at the VM's TAP device."),
    ):
        rows = [((name,), float(getattr(counters, field))) for name, counters in counted]
        yield _counter(metric, text, rows, ["vm"])
    found = [(vm.name, vm.connections) for vm in vms if vm.connections is not None]
    ways: Rows = [
        ((name, way), float(getattr(connections, way)))
        for name, connections in found
        for way in ("outgoing", "incoming")
    ]
    text = "New connections that the VM has begun, allowed or not (outgoing), or that were let in (incoming)."
    yield _counter("vm_network_connections", text, ways, ["vm", "direction"])


def _list_host(report: MetricsReport) -> Iterator[Metric]:
    yield _gauge("volumes", "Volumes in the state directory.", [((), len(report.volumes))])
    yield _gauge("volume_bytes", "Sizes of the volumes in the state directory.", [((), sum(report.volumes))])
    if report.images is not None:
        yield _gauge("images", "Images of this host, each content once.", [((), report.images.count)])
        yield _gauge("image_bytes", "Sizes of all images.", [((), report.images.size)])
    if report.room is not None:
        place = (str(report.room.folder),)
        text = "Size of the file system of the state directory."
        yield _gauge("filesystem_size_bytes", text, [(place, report.room.total)], ["path"])
        text = "Space that is free on the file system of the state directory."
        yield _gauge("filesystem_free_bytes", text, [(place, report.room.free)], ["path"])
        text = "Space below which nothing is created or started (disk.reserve)."
        yield _gauge("filesystem_reserve_bytes", text, [(place, report.disk_reserve)], ["path"])
    text = "Guest memory of all VMs whose VMM is active."
    yield _gauge("memory_committed_bytes", text, [((), report.memory_committed)])
    text = "Guest memory that all VMs together may have."
    yield _gauge("memory_allowed_bytes", text, [((), report.memory_allowed)])
    settled = (status for status in PullStatus if status.is_settled)
    ends = [((status.value,), float(report.counts.pulls[status])) for status in settled]
    yield _counter("image_pulls", "Pulls of images that have ended, by their status.", ends, ["status"])
    text = "Pulls of images in progress."
    yield _gauge("image_pulls_in_progress", text, [((), report.pulls_in_progress)])


def _list_daemon(report: MetricsReport) -> Iterator[Metric]:
    text = "Version of hypemand: always 1."
    yield _gauge("build_info", text, [((report.version,), 1.0)], ["version"])
    rows: Rows = [(key, float(number)) for key, number in sorted(report.api.requests.items())]
    text = "Requests of the API that were answered."
    yield _counter("api_requests", text, rows, ["method", "route", "code"])
    text = "Requests over TCP that had no valid token."
    yield _counter("api_tokens_refused", text, [((), report.api.refused)])
    text = "Iterations of the event loop by their duration: so long other requests had to wait."
    yield _histogram("event_loop_turn_seconds", text, [((), report.turns)])
    if report.dropped is not None:
        rows = [((name,), float(number)) for name, number in sorted(report.dropped.items())]
        text = "Lines of a VM's console that were over its journal limit, or came too fast."
        yield _counter("journal_lines_dropped", text, rows, ["vm"])
