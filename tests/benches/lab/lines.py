"""Charts of lines: for `tests/bench http` throughput against latency, for `soak` memory over time."""

import math
from dataclasses import dataclass
from html import escape

PANEL_WIDTH, PANEL_HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 34, 44
MARGIN, HEADER_HEIGHT, LEGEND_HEIGHT = 20, 52, 22
STEPS = (1, 2, 5)

# Colours that keep their contrast on white and on black; text takes the reader's scheme.
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.heading { font-size: 16px; font-weight: 600; }
.title { font-size: 12px; font-weight: 600; }
.grid { stroke: #24292f; stroke-opacity: 0.15; }
.line { fill: none; stroke-width: 2; }
.c0 { stroke: #1a7f64; } .c1 { stroke: #d1603d; } .c2 { stroke: #4a6fa5; } .c3 { stroke: #7fb8a8; }
circle.c0 { fill: #1a7f64; } circle.c1 { fill: #d1603d; }
circle.c2 { fill: #4a6fa5; } circle.c3 { fill: #7fb8a8; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .grid { stroke: #e6edf3; }
  .c0 { stroke: #3fb68b; } .c1 { stroke: #f0883e; } .c2 { stroke: #79a6e0; }
  circle.c0 { fill: #3fb68b; } circle.c1 { fill: #f0883e; } circle.c2 { fill: #79a6e0; }
}
"""


@dataclass(frozen=True)
class Line:
    """Points in their order; a point with a label has a dot."""

    name: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Axis:
    """What is drawn along one side: from zero, or by its logarithm."""

    label: str
    is_log: bool

    def ends(self, values):
        """Where it begins and ends to show all `values`."""
        if not self.is_log:
            return 0.0, max(values) * 1.05
        ticks = _decades(min(values), max(values))
        low = max(tick for tick in ticks if tick <= min(values))
        return low, min(tick for tick in ticks if tick >= max(values))

    def ticks(self, low, high):
        if self.is_log:
            return [tick for tick in _decades(low, high) if low <= tick <= high]
        rough = high / 6
        decade = 10.0 ** math.floor(math.log10(rough))
        step = next(each * decade for each in (*STEPS, 10) if each * decade >= rough)
        return [index * step for index in range(int(high / step) + 1)]

    def place(self, value, low, high):
        """From 0 to 1."""
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Panel:
    """Lines between two axes."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]


def _decades(low, high):
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    return [step * 10.0**power for power in range(first, last + 1) for step in STEPS]


def draw(heading, explanation, panels):
    """An SVG of panels beside one another; lines of one name have one colour."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    width = 2 * MARGIN + PANEL_WIDTH * len(panels)
    height = HEADER_HEIGHT + LEGEND_HEIGHT + PANEL_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(heading)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="heading" x="{MARGIN}" y="{MARGIN + 8}">{escape(heading)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 26}">{escape(explanation)}</text>',
    ]
    left = MARGIN
    for index, name in enumerate(names):
        y = HEADER_HEIGHT + 12
        parts.append(f'<path class="line c{index}" d="M{left} {y - 4}h18"/>')
        parts.append(f'<text x="{left + 24}" y="{y}">{escape(name)}</text>')
        left += 52 + 7 * len(name)
    for index, panel in enumerate(panels):
        x, y = MARGIN + index * PANEL_WIDTH, HEADER_HEIGHT + LEGEND_HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(panel, names)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel, names):
    points = [point for line in panel.lines for point in line.points]
    if not points:
        return
    x_ends = panel.x.ends([x for x, _, _ in points])
    y_ends = panel.y.ends([y for _, y, _ in points])
    width, height = PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM

    def across(value):
        return LEFT + width * panel.x.place(value, *x_ends)

    def down(value):
        return TOP + height * (1 - panel.y.place(value, *y_ends))

    yield f'<text class="title" x="{LEFT}" y="{TOP - 12}">{escape(panel.title)}</text>'
    for tick in panel.x.ticks(*x_ends):
        x = across(tick)
        yield f'<path class="grid" d="M{x:.1f} {TOP}v{height}"/>'
        yield f'<text x="{x:.1f}" y="{TOP + height + 15}" text-anchor="middle">{tick:g}</text>'
    for tick in panel.y.ticks(*y_ends):
        y = down(tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}h{width}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield (
        f'<text x="{LEFT + width / 2}" y="{PANEL_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(panel.x.label)}</text>"
    )
    middle = TOP + height / 2
    yield (
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y.label)}</text>"
    )
    for line in panel.lines:
        if line.points:
            yield from _line(line, names.index(line.name), across, down)


def _line(line, colour, across, down):
    places = [(across(x), down(y), label) for x, y, label in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    yield f'<path class="line c{colour}" d="M{path}"/>'
    for x, y, label in places:
        if label:
            yield f'<circle class="c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            yield f'<text x="{x + 6:.1f}" y="{y - 6:.1f}">{escape(label)}</text>'
