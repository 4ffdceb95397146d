# SPDX-License-Identifier: Apache-2.0
"""Timeline of a boot as text and as SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from hypemand.model.timeline import Lane, Span, Timeline

_MEANINGS = {
    Lane.HOST: "hypemand",
    Lane.UNIT: "systemd and the VMM",
    Lane.KERNEL: "guest kernel",
    Lane.INIT: "guest init",
    Lane.AGENT: "guest agent",
    Lane.PROGRAM: "program",
}
_COLORS = {
    Lane.HOST: "#5b6f8c",
    Lane.UNIT: "#8467b8",
    Lane.KERNEL: "#d9822b",
    Lane.INIT: "#2f87c9",
    Lane.AGENT: "#1f9d8b",
    Lane.PROGRAM: "#4c9a2a",
}
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MIN_BAR = 10
_MAX_NAME = 28


def render_text(timeline: Timeline, *, width: int = 80) -> str:
    """A table with bars, at most `width` columns where that leaves room for bars; ends with a newline."""
    name_width = min(max([4, *(len(span.name) for span in timeline.spans)]), _MAX_NAME)
    bar_width = max(width - name_width - 33, _MIN_BAR)
    total = _extent(timeline)
    lines = [_headline(timeline), ""]
    if timeline.spans:
        lines.append(f"{'START':>10} {'TIME':>10}  {'LANE':<7} {'STEP':<{name_width}}")
    for span in timeline.spans:
        start, took = _format_ms(span.start_ms), _format_ms(span.end_ms - span.start_ms)
        name = span.name if len(span.name) <= name_width else span.name[: name_width - 1] + "…"
        bar = _bar(span, total, bar_width)
        lines.append(f"{start:>10} {took:>10}  {span.lane:<7} {name:<{name_width}} {bar}".rstrip())
    longest = max(timeline.spans, key=lambda s: s.end_ms - s.start_ms, default=None)
    if longest is not None:
        took_ms = longest.end_ms - longest.start_ms
        lines += ["", f"Longest: {longest.name}, {took_ms:.0f} ms ({100 * took_ms / total:.0f} %)"]
    return "\n".join(lines) + "\n"


def _format_ms(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 10_000 else f"{ms / 1000:.2f} s"


def _headline(timeline: Timeline) -> str:
    if timeline.running_ms is None:
        return f"{timeline.vm}: did not reach Running (boot {timeline.boot})"
    return f"{timeline.vm}: Running {timeline.running_ms:.0f} ms after the request (boot {timeline.boot})"


def _extent(timeline: Timeline) -> float:
    """The end of the time axis in ms, never 0."""
    return max([1.0, timeline.running_ms or 0.0, *(span.end_ms for span in timeline.spans)])


def _bar(span: Span, total: float, width: int) -> str:
    """From start to end in eighths of a character; what is too short to show is one thin line."""
    start = min(round(span.start_ms / total * width * 8), width * 8 - 1)
    end = max(round(span.end_ms / total * width * 8), start + 1)
    cell, into = divmod(start, 8)
    if end - start < 8:
        # Too little for a whole character: as wide as it is, at the left of its character.
        return " " * cell + _EIGHTHS[end - start]
    full, rest = divmod(end - (cell + (into >= 4)) * 8, 8)
    return " " * (cell + (into >= 4)) + "█" * full + _EIGHTHS[rest].strip()


_SVG_LEFT = 92
_SVG_PLOT = 860
_SVG_RIGHT = 48
_SVG_TOP = 104
_SVG_ROW = 24
_SVG_PAD = 8
_SVG_STYLE = """
  text { font-family: 'DejaVu Sans', 'Noto Sans', Helvetica, sans-serif; font-size: 12px; fill: #24292f; }
  .label { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
  .inside { fill: #ffffff; stroke: none; }
  .title { font-size: 20px; font-weight: bold; }
  .dim { fill: #6a737d; }
  .lane { font-weight: bold; }
  .tick { fill: #6a737d; font-size: 11px; text-anchor: middle; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .running { stroke: #1a7f37; stroke-width: 1.5; stroke-dasharray: 5 3; }
  .done { fill: #1a7f37; font-weight: bold; }
"""


def render_svg(timeline: Timeline) -> str:
    """A drawing of the boot: a lane for each who worked, a bar for each step, time from left to right."""
    lanes = [(lane, [s for s in timeline.spans if s.lane == lane]) for lane in Lane]
    lanes = [(lane, spans) for lane, spans in lanes if spans]
    height = sum(len(spans) * _SVG_ROW + _SVG_PAD for _, spans in lanes)
    bottom = _SVG_TOP + height
    scale = _SVG_PLOT / _extent(timeline)
    width, full_height = _SVG_LEFT + _SVG_PLOT + _SVG_RIGHT, bottom + 76
    title, boot = escape(_headline(timeline).partition(" (boot ")[0]), escape(timeline.boot)
    size = f'width="{width}" height="{full_height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {full_height}">',
        f"<title>{title}</title>",
        f"<style>{_SVG_STYLE}</style>",
        f'<rect {size} fill="#ffffff"/>',
        f'<text class="title" x="24" y="38">{title}</text>',
        f'<text class="dim" x="24" y="60">boot {boot}</text>',
        *_svg_lanes(lanes, width),
        *_svg_axis(_extent(timeline), scale, bottom),
        *_svg_bars(lanes, scale),
        *_svg_running(timeline, scale, bottom),
        *_svg_legend(lanes, bottom + 34),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_Lanes = list[tuple[Lane, list[Span]]]


def _svg_lanes(lanes: _Lanes, width: int) -> Iterator[str]:
    top = _SVG_TOP
    for i, (lane, spans) in enumerate(lanes):
        height = len(spans) * _SVG_ROW + _SVG_PAD
        fill = "#f6f8fa" if i % 2 == 0 else "#ffffff"
        yield f'<rect x="0" y="{top}" width="{width}" height="{height}" fill="{fill}"/>'
        yield f'<text class="lane" x="24" y="{top + _SVG_PAD // 2 + 16}">{lane}</text>'
        top += height


def _svg_axis(total: float, scale: float, bottom: int) -> Iterator[str]:
    step = _tick_step(total)
    for i in range(int(total / step + 1e-9) + 1):
        x = _SVG_LEFT + i * step * scale
        yield f'<line class="grid" x1="{x:.1f}" y1="{_SVG_TOP - 6}" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{_SVG_TOP - 12}">{i * step:g} ms</text>'


def _tick_step(total: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most ten ticks."""
    step = 0.1
    while True:
        for factor in (1, 2, 5):
            if total / (step * factor) <= 10:
                return round(step * factor, 1)
        step *= 10


def _svg_bars(lanes: _Lanes, scale: float) -> Iterator[str]:
    top = _SVG_TOP
    for lane, spans in lanes:
        for i, span in enumerate(spans):
            yield from _svg_bar(lane, span, scale, top + _SVG_PAD // 2 + i * _SVG_ROW)
        top += len(spans) * _SVG_ROW + _SVG_PAD


def _svg_bar(lane: Lane, span: Span, scale: float, y: int) -> Iterator[str]:
    x = _SVG_LEFT + span.start_ms * scale
    width = max((span.end_ms - span.start_ms) * scale, 1.5)
    took = _format_ms(span.end_ms - span.start_ms)
    label = f"{escape(span.name)} <tspan class='dim'>{took}</tspan>"
    # Beside the bar, on the side that has the room.
    room = _SVG_LEFT + _SVG_PLOT - (x + width)
    at, anchor = (x + width + 6, "start") if room > 8 * (len(span.name) + 10) else (x - 6, "end")
    if anchor == "end" and x - _SVG_LEFT < 8 * (len(span.name) + 10):
        at, anchor = x + 6, "start"
        label = f"<tspan class='inside'>{escape(span.name)} {took}</tspan>"
    place = f'x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_SVG_ROW - 6}"'
    yield (
        f'<rect {place} rx="2" fill="{_COLORS[lane]}">'
        f"<title>{escape(span.name)}: {span.start_ms:.1f} to {span.end_ms:.1f} ms</title></rect>"
    )
    yield f'<text class="label" x="{at:.1f}" y="{y + 16}" text-anchor="{anchor}">{label}</text>'


def _svg_running(timeline: Timeline, scale: float, bottom: int) -> Iterator[str]:
    if timeline.running_ms is None:
        return
    x = _SVG_LEFT + timeline.running_ms * scale
    yield f'<line class="running" x1="{x:.1f}" y1="{_SVG_TOP - 30}" x2="{x:.1f}" y2="{bottom}"/>'
    anchor = "end" if timeline.running_ms * scale > _SVG_PLOT / 2 else "start"
    yield (
        f'<text class="done" x="{x:.1f}" y="{_SVG_TOP - 34}" text-anchor="{anchor}">'
        f"Running, {timeline.running_ms:.0f} ms</text>"
    )


def _svg_legend(lanes: _Lanes, y: int) -> Iterator[str]:
    for i, (lane, spans) in enumerate(lanes):
        x, row = 24 + i % 3 * 300, y + i // 3 * 22
        yield f'<rect x="{x}" y="{row - 11}" width="12" height="12" rx="2" fill="{_COLORS[lane]}"/>'
        yield f'<text x="{x + 18}" y="{row}">{_MEANINGS[lane]}: {_format_ms(_covered(spans))}</text>'


def _covered(spans: Iterable[Span]) -> float:
    """Milliseconds in which at least one of the spans was on."""
    covered, reached = 0.0, 0.0
    for span in sorted(spans, key=lambda s: s.start_ms):
        covered += max(span.end_ms - max(span.start_ms, reached), 0.0)
        reached = max(reached, span.end_ms)
    return covered
