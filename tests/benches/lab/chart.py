"""Charts of bars, for `tests/bench cpu` and `gpu`: a panel for each workload, a bar for each engine."""

from html import escape

from .results import three_digits

COLUMNS = 3
PANEL_WIDTH, LABEL_WIDTH, BAR_WIDTH = 410, 112, 180
ROW_HEIGHT, TITLE_HEIGHT, PANEL_GAP, MARGIN = 17, 30, 14, 20
HEADER_HEIGHT = 58
# Of the longest bar.
FARTHEST_LIMIT = 2

# Colours that keep their contrast on white and on black; text takes the reader's scheme.
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.heading { font-size: 16px; font-weight: 600; }
.title { font-size: 12px; font-weight: 600; }
.value { font-variant-numeric: tabular-nums; }
.ours { fill: #1a7f64; } .int8 { fill: #7d8590; } .other { fill: #b4bac2; }
.reference { stroke: #24292f; stroke-dasharray: 3 3; } .limit { stroke: #d1603d; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .ours { fill: #3fb68b; } .int8 { fill: #8b949e; } .other { fill: #545d68; }
  .reference { stroke: #e6edf3; } .limit { stroke: #f0883e; }
}
"""


def draw(title, cells, reference):
    """An SVG of how fast each engine is, as a multiple of one of them."""
    panels = {}
    for cell in cells:
        panels.setdefault(cell.workload, []).append(cell)
    panel_height = TITLE_HEIGHT + ROW_HEIGHT * max(map(len, panels.values()), default=0) + PANEL_GAP
    num_rows = -(-len(panels) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * PANEL_WIDTH
    height = HEADER_HEIGHT + num_rows * panel_height + MARGIN
    heading = f"{title}: speed as a multiple of {reference}"
    legend = f"dashed: {reference} · orange: the machine's limit in the engine's precision"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(heading)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="heading" x="{MARGIN}" y="{MARGIN + 8}">{escape(heading)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 26}">{escape(legend)}</text>',
    ]
    for index, (workload, panel) in enumerate(panels.items()):
        left = MARGIN + index % COLUMNS * PANEL_WIDTH
        top = HEADER_HEIGHT + index // COLUMNS * panel_height
        parts.append(f'<g transform="translate({left} {top})">')
        parts += _panel(workload, panel, reference)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(workload, cells, reference):
    medians_ms = {cell.engine: cell.timings.median_ms for cell in cells}
    if reference not in medians_ms:
        return
    speeds = {engine: medians_ms[reference] / each for engine, each in medians_ms.items()}
    limits = {cell.engine: speeds[cell.engine] / cell.limit_share for cell in cells}
    fastest = max(speeds, key=speeds.get)
    # The limit of the fastest engine is the right edge, if it is near; beyond that none is drawn.
    longest = max(speeds[fastest], limits[fastest])
    scale = BAR_WIDTH / min(longest, FARTHEST_LIMIT * speeds[fastest])
    yield f'<text class="title" y="{TITLE_HEIGHT - 12}">{escape(workload)}</text>'
    for row, cell in enumerate(sorted(cells, key=lambda cell: cell.timings.median_ms)):
        top = TITLE_HEIGHT + row * ROW_HEIGHT
        length, limit = speeds[cell.engine] * scale, limits[cell.engine] * scale
        yield f'<text x="{LABEL_WIDTH - 6}" y="{top + 11}" text-anchor="end">{cell.engine}</text>'
        yield (
            f'<rect class="{_class(cell.engine)}" x="{LABEL_WIDTH}" y="{top + 2}"'
            f' width="{length:.1f}" height="{ROW_HEIGHT - 5}" rx="2"/>'
        )
        if limit <= BAR_WIDTH:
            x = LABEL_WIDTH + limit
            yield f'<path class="limit" d="M{x:.1f} {top + 1}v{ROW_HEIGHT - 3}"/>'
        yield (
            f'<text class="value" x="{LABEL_WIDTH + BAR_WIDTH + 6}" y="{top + 11}">'
            f"{speeds[cell.engine]:.2f}× · {three_digits(cell.timings.median_ms)} ms</text>"
        )
    x, bottom = LABEL_WIDTH + scale, TITLE_HEIGHT + len(cells) * ROW_HEIGHT
    yield f'<path class="reference" d="M{x:.1f} {TITLE_HEIGHT - 2}V{bottom}"/>'


def _class(engine):
    if engine.startswith("sanderling"):
        return "ours"
    return "int8" if engine.endswith("int8") else "other"
