"""A dashboard of Grafana as an SVG, with what a Prometheus knows: to see it without a Grafana."""

from html import escape

COLUMN, ROW, PAD = 52, 28, 10
LEGENDS, LEGEND_LINES = 3, 2
COLORS = ["#0b7a88", "#c07408", "#7a5bb5", "#1a7041", "#ae2018", "#586367", "#8a5200", "#0b6470"]
STYLE = (
    "text { font: 11px system-ui, sans-serif; fill: #1b2225; } .title { font-weight: 600; }"
    " .row { font-size: 14px; font-weight: 600; } .small { fill: #586367; font-size: 9.5px; }"
    " polyline { fill: none; stroke-width: 1.3; }"
)
SCALES = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")]
UNITS = {"s": " s", "bytes": "B", "reqps": "/s", "percentunit": " %", "percent": " %", "short": ""}


def number(value: float, unit: str) -> str:
    if unit == "percentunit":
        value *= 100
    if value == 0 or unit.startswith("percent"):
        return f"{value:.3g}{UNITS[unit]}"
    scale, prefix = next((each for each in SCALES if value >= each[0]), SCALES[-1])
    return f"{value / scale:.3g} {prefix}{UNITS[unit].strip()}".strip()


def name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    return legend


def draw(dashboard: dict, query_range) -> str:
    """`query_range` gives the series of an expression, each as its labels, times and values."""
    panels = dashboard["panels"]
    height = max((place["y"] + place["h"]) for place in (panel["gridPos"] for panel in panels))
    parts = [part for panel in panels for part in draw_panel(panel, query_range)]
    width = 24 * COLUMN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * ROW}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#faf8f4"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def draw_panel(panel: dict, query_range):
    place = panel["gridPos"]
    x, y = place["x"] * COLUMN + 4, place["y"] * ROW + 4
    width, height = place["w"] * COLUMN - 8, place["h"] * ROW - 8
    if panel["type"] == "row":
        yield f'<text class="row" x="{x + PAD}" y="{y + 16}">{escape(panel["title"])}</text>'
        return
    unit = panel["fieldConfig"]["defaults"]["unit"]
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="#fff" stroke="#e2dcd2"/>'
    yield f'<text class="title" x="{x + PAD}" y="{y + 18}">{escape(panel["title"])}</text>'
    series = [
        (name(target["legendFormat"], labels), times, values)
        for target in panel["targets"]
        for labels, times, values in query_range(target["expr"])
    ]
    values = [value for _, _, values in series for value in values]
    times = [time for _, times, _ in series for time in times]
    if not values:
        yield f'<text x="{x + width / 2 - 20}" y="{y + height / 2}">No data</text>'
        return
    most, first, last = max(*values, 0) or 1, min(times), max(times)
    left, top = x + 58, y + 30
    plot_width = width - 58 - PAD
    plot_height = height - 30 - 14 * LEGEND_LINES - PAD
    for share in (0, 0.5, 1):
        level = top + plot_height * (1 - share)
        yield f'<path d="M{left} {level:.1f}h{plot_width}" stroke="#eee9e1"/>'
        label = number(most * share, unit)
        yield f'<text class="small" text-anchor="end" x="{left - 5}" y="{level + 3:.1f}">{label}</text>'
    for index, (legend, when, what) in enumerate(sorted(series)):
        color = COLORS[index % len(COLORS)]
        points = " ".join(
            f"{left + plot_width * (time - first) / (last - first or 1):.1f},"
            f"{top + plot_height * (1 - value / most):.1f}"
            for time, value in zip(when, what, strict=True)
        )
        yield f'<polyline points="{points}" stroke="{color}"/>'
        line, across = index // LEGENDS, x + PAD + index % LEGENDS * (width - PAD) / LEGENDS
        if line < LEGEND_LINES:
            down = top + plot_height + 18 + 13 * line
            yield f'<rect x="{across:.1f}" y="{down - 7}" width="7" height="7" fill="{color}"/>'
            yield f'<text class="small" x="{across + 11:.1f}" y="{down}">{escape(legend[:24])}</text>'
