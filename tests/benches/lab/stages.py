"""The chart of `tests/bench cold`: a panel for each row of ours, a bar for each stage of its start."""

from html import escape

from .results import three_digits

COLUMNS = 2
PANEL_WIDTH, LABEL_WIDTH, BAR_WIDTH = 590, 150, 300
ROW_HEIGHT, TITLE_HEIGHT, PANEL_GAP, MARGIN = 17, 30, 18, 20
HEADER_HEIGHT = 58
HEADING = "From the start of the process to its first right answer"

# Colours that keep their contrast on white and on black; text takes the reader's scheme.
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.heading { font-size: 16px; font-weight: 600; }
.title { font-size: 12px; font-weight: 600; }
.value { font-variant-numeric: tabular-nums; }
.stage { fill: #1a7f64; } .answer { stroke: #d1603d; stroke-width: 2; }
.floor { stroke: #24292f; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .stage { fill: #3fb68b; } .answer { stroke: #f0883e; } .floor { stroke: #e6edf3; }
}
"""


def draw(rows):
    """An SVG of the stages of these rows, medians; each panel has its own scale."""
    lines = [rows[at : at + COLUMNS] for at in range(0, len(rows), COLUMNS)]
    heights = [max(map(_panel_height, line)) for line in lines]
    width = 2 * MARGIN + COLUMNS * PANEL_WIDTH
    height = HEADER_HEIGHT + sum(heights) + MARGIN
    legend = "medians; orange: the first right answer · dashed: a plain download of the weights"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(HEADING)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="heading" x="{MARGIN}" y="{MARGIN + 8}">{escape(HEADING)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 26}">{escape(legend)}</text>',
    ]
    top = HEADER_HEIGHT
    for line, line_height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            parts.append(f'<g transform="translate({MARGIN + column * PANEL_WIDTH} {top})">')
            parts += _panel(row)
            parts.append("</g>")
        top += line_height
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel_height(row):
    return TITLE_HEIGHT + ROW_HEIGHT * max(1, len(row.stages())) + PANEL_GAP


def _panel(row):
    stages = row.stages()
    scale = BAR_WIDTH / max([row.median_ms, *(s.start_ms + s.duration_ms for s in stages)])
    title = f"{row.model}: {row.contestant.name.removeprefix('sanderling, ')}"
    answer = f"{three_digits(row.median_ms)} ms"
    yield f'<text class="title" y="{TITLE_HEIGHT - 12}">{escape(title)} · {answer}</text>'
    for index, stage in enumerate(stages):
        top = TITLE_HEIGHT + index * ROW_HEIGHT
        left, length = LABEL_WIDTH + stage.start_ms * scale, max(1.0, stage.duration_ms * scale)
        yield (
            f'<text x="{LABEL_WIDTH - 6}" y="{top + 11}" text-anchor="end">'
            f"{escape(stage.name.replace('_', ' '))}</text>"
        )
        yield (
            f'<rect class="stage" x="{left:.1f}" y="{top + 2}" width="{length:.1f}"'
            f' height="{ROW_HEIGHT - 5}" rx="2"/>'
        )
        yield (
            f'<text class="value" x="{LABEL_WIDTH + BAR_WIDTH + 8}" y="{top + 11}">'
            f"{three_digits(stage.duration_ms)} ms from {three_digits(stage.start_ms)}</text>"
        )
    bottom = TITLE_HEIGHT + max(1, len(stages)) * ROW_HEIGHT
    if not stages:
        yield f'<text x="{LABEL_WIDTH}" y="{TITLE_HEIGHT + 11}">no stages reported</text>'
    lines = {"answer": row.median_ms}
    if row.downloads_ms:
        lines["floor"] = row.download_ms
    for kind, at_ms in lines.items():
        x = LABEL_WIDTH + at_ms * scale
        yield f'<path class="{kind}" d="M{x:.1f} {TITLE_HEIGHT - 2}V{bottom}"/>'
