# SPDX-License-Identifier: Apache-2.0
"""The timeline: right for an honest boot, bounded for a hostile one, and drawn whole."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.cli.timeline import render_svg, render_text
from hypemand.model.timeline import Lane, Span, Timeline
from hypemand.protocol.sentinels import Stage
from hypemand.vm.timeline import BootFacts, derive_timeline

BOOT = "0123456789abcdef0123456789abcdef"
STAGES = tuple(
    Stage(BOOT, name, start, end)
    for name, start, end in (
        ("mounts", 0.300, 0.310),
        ("root", 0.310, 0.360),
        ("agent", 0.360, 0.390),
        ("program", 0.390, 0.400),
    )
)
FACTS = BootFacts(
    vm="web",
    boot=BOOT,
    requested=100.0,
    unit_asked=100.010,
    unit_created=100.015,
    main_started=100.020,
    program_seen=100.600,
    agent_seen=100.590,
    running=100.605,
    stages=STAGES,
)


def by_name(timeline: Timeline) -> dict[str, tuple[str, float, float]]:
    return {s.name: (s.lane, round(s.start_ms), round(s.end_ms)) for s in timeline.spans}


def test_guest_stages_are_moved_by_the_moment_program_start_came() -> None:
    timeline = derive_timeline(FACTS)
    assert timeline.running_ms == pytest.approx(605)
    assert by_name(timeline) == {
        "prepare": ("host", 0, 10),
        "StartTransientUnit": ("host", 10, 15),
        "unit start": ("unit", 10, 20),
        "VMM start": ("unit", 20, 200),
        "kernel": ("kernel", 200, 500),
        "mounts": ("init", 500, 510),
        "root": ("init", 510, 560),
        "agent": ("agent", 560, 590),
        "program": ("program", 590, 600),
        "tell systemd": ("host", 600, 605),
    }


def test_a_warm_start_has_a_thaw_in_place_of_the_kernel() -> None:
    stages = (Stage(BOOT, "thaw", 0.0, 0.004), Stage(BOOT, "config", 0.005, 0.020), STAGES[-1])
    spans = by_name(derive_timeline(replace(FACTS, stages=stages)))
    begin = {name: spans[name] for name in ("VMM start", "thaw", "config")}
    assert begin == {
        "VMM start": ("unit", 20, 200),
        "thaw": ("init", 200, 204),
        "config": ("init", 205, 220),
    }
    assert "kernel" not in spans


def test_a_stage_that_ends_after_running_does_not_move_the_others() -> None:
    late = replace(FACTS, stages=(*STAGES, Stage(BOOT, "headers", 0.5, 9.5)), until=120.0)
    assert by_name(derive_timeline(late))["kernel"] == ("kernel", 200, 500)
    assert by_name(derive_timeline(late))["headers"] == ("init", 700, 9700)


def test_stages_at_the_same_time_stand_side_by_side() -> None:
    beside = (Stage(BOOT, "volumes", 0.350, 0.385), Stage(BOOT, "network", 0.352, 0.390))
    timeline = derive_timeline(replace(FACTS, stages=(*STAGES[:2], *beside, *STAGES[3:])))
    spans = by_name(timeline)
    assert (spans["volumes"], spans["network"]) == (("init", 550, 585), ("init", 552, 590))
    bars = {
        line.split()[5]: line for line in render_text(timeline, width=200).splitlines() if " init " in line
    }
    starts = {name: bars[name].rindex("  ") for name in ("volumes", "network")}
    assert abs(starts["volumes"] - starts["network"]) <= 1
    drawing = ElementTree.fromstring(render_svg(timeline))  # noqa: S314 our own text
    drawn = [e for e in drawing.iter() if e.tag.endswith("rect")]
    at = {(e[0].text or "").split(":")[0]: e for e in drawn if len(e)}
    ends = {name: float(e.attrib["x"]) + float(e.attrib["width"]) for name, e in at.items()}
    assert float(at["network"].attrib["x"]) < ends["volumes"]
    assert at["network"].attrib["y"] != at["volumes"].attrib["y"]


def test_an_agent_that_init_does_not_start_is_waited_for_after_the_program() -> None:
    stages = tuple(s for s in STAGES if s.name != "agent")
    facts = replace(FACTS, stages=stages, agent_seen=107.0, running=107.001)
    assert by_name(derive_timeline(facts))["agent"] == ("agent", 600, 7000)


def test_a_restore_is_one_step_until_the_agent_answers() -> None:
    facts = replace(FACTS, stages=(), program_seen=None, agent_seen=100.2, running=100.21, is_restored=True)
    spans = by_name(derive_timeline(facts))
    assert set(spans) == {"prepare", "StartTransientUnit", "unit start", "restore", "tell systemd"}
    assert spans["restore"] == ("agent", 20, 200)


def test_without_stages_kernel_and_init_are_one_step() -> None:
    facts = replace(FACTS, stages=(), agent_seen=None)
    assert by_name(derive_timeline(facts))["kernel and init"] == ("kernel", 20, 600)


def test_a_vmm_that_waits_is_set_going_at_the_moment_the_host_saw() -> None:
    spans = by_name(derive_timeline(replace(FACTS, cpus_started=100.1)))
    assert spans["VMM start"] == ("unit", 20, 100)


def test_a_guest_clock_cannot_start_before_the_vmm() -> None:
    slow = tuple(Stage(BOOT, s.name, s.start + 50, s.end + 50) for s in STAGES)
    spans = derive_timeline(replace(FACTS, stages=slow)).spans
    assert min(s.start_ms for s in spans if s.lane == "kernel") == pytest.approx(20)


def test_a_boot_that_only_began_has_no_guest_spans() -> None:
    timeline = derive_timeline(BootFacts("web", BOOT, 100.0, unit_asked=100.01))
    assert by_name(timeline) == {"prepare": ("host", 0, 10)}
    assert timeline.running_ms is None


def test_the_wait_for_a_check_is_a_step_of_its_own() -> None:
    started = FACTS.program_seen
    assert started is not None
    facts = replace(FACTS, ready_seen=started + 0.25, running=started + 0.26)
    spans = by_name(derive_timeline(facts))
    lane, begin, end = spans["ready"]
    assert (lane, round(end - begin)) == ("program", 250)
    assert round(spans["tell systemd"][1] - end) == 0
    assert "ready" not in by_name(derive_timeline(FACTS))


moments = st.one_of(st.none(), st.floats(min_value=0, max_value=1e6, allow_nan=False))
hostile = st.builds(
    lambda name, start, more: Stage(BOOT, name, start, start + more),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64),
    st.floats(min_value=0, max_value=1e9),
    st.floats(min_value=0, max_value=1e9),
)
any_facts = st.builds(
    BootFacts,
    st.just("web"),
    st.just(BOOT),
    st.floats(min_value=0, max_value=1e6),
    moments,
    moments,
    moments,
    moments,
    moments,
    moments,
    moments,
    moments,
    moments,
    st.lists(hostile, max_size=12).map(tuple),
)


@given(any_facts)
def test_spans_lie_within_what_the_host_saw_and_can_be_drawn(facts: BootFacts) -> None:
    timeline = derive_timeline(facts)
    known = [facts.unit_asked, facts.unit_created, facts.main_started, facts.cpus_started]
    known += [facts.program_seen, facts.agent_seen, facts.ready_seen, facts.running, facts.until]
    last = max([0.0, *(m - facts.requested for m in known if m is not None)]) * 1000
    for span in timeline.spans:
        assert 0 <= span.start_ms <= span.end_ms <= last + 0.01
        assert Lane(span.lane)
    starts = [span.start_ms for span in timeline.spans]
    assert starts == sorted(starts)
    assert render_text(timeline).startswith("web: ")
    ElementTree.fromstring(render_svg(timeline))  # noqa: S314 (our own words)


def test_more_stages_than_a_guest_has_are_cut_off() -> None:
    many = tuple(Stage(BOOT, f"s{i}", 0.1, 0.2) for i in range(100_000))
    assert len(derive_timeline(replace(FACTS, stages=many)).spans) < 300


def test_the_table_has_a_bar_for_each_step_under_its_time() -> None:
    text = render_text(derive_timeline(FACTS), width=80)
    lines = text.splitlines()
    assert lines[0] == f"web: Running 605 ms after the request (boot {BOOT})"
    kernel = next(line for line in lines if " kernel  kernel" in line)
    assert kernel.split()[:4] == ["200.0", "ms", "300.0", "ms"]
    assert max(len(line) for line in lines[2:]) <= 80
    # The bars have the 30 columns from the 50th on: 300 of 605 ms are 14, and begin after 200 of 605, 9.6.
    assert kernel[50:].rstrip("▏▎▍▌▋▊▉") == " " * 10 + "█" * 14
    assert lines[-1] == "Longest: kernel, 300 ms (50 %)"


def test_a_boot_that_failed_says_so() -> None:
    failed = derive_timeline(replace(FACTS, running=None))
    assert "did not reach Running" in render_text(failed)
    assert 'class="running"' not in render_svg(failed)
    assert 'class="running"' in render_svg(derive_timeline(FACTS))


def test_names_of_a_guest_are_escaped_in_the_drawing() -> None:
    svg = render_svg(Timeline("web", BOOT, (Span("<script>&", "init", 0.0, 1.0),), None))
    assert "<script>" not in svg
    names = [text for text in ElementTree.fromstring(svg).itertext() if "<script>&" in text]  # noqa: S314
    assert names


def test_every_step_is_drawn_inside_the_picture() -> None:
    root = ElementTree.fromstring(render_svg(derive_timeline(FACTS)))  # noqa: S314
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if len(r)]
    assert len(bars) == len(derive_timeline(FACTS).spans)
    for bar in bars:
        assert 0 <= float(bar.attrib["x"]) <= width - float(bar.attrib["width"])
        assert 0 <= float(bar.attrib["y"]) <= height - float(bar.attrib["height"])
