"""The table and the chart of `tests/bench gpu`."""

from . import chart, gpu_http
from .results import three_digits
from .servers import FASTAPI
from .workload import mean_sst2_length


def table(found, ours, peers, packages):
    """Everything a reader needs to judge the figures, then the figures.

    `ours` and `peers` are engines, `packages` are those of Python.
    """
    about, limits = found.about, found.limits
    flops, bytes_per_s = limits["f16_per_s"] / 1e12, limits["bytes_per_s"] / 1e12
    differences = found.encoders.differences.items()
    lines = ["# Inference on a GPU against torch", ""]
    lines += [f"- {about['date']}, written by `tests/bench gpu`"]
    lines += [f"- {about['device']}, driver {about['driver']}, {about['memory']}. {found.check}"]
    lines += ["- " + ", ".join(f"{name} {about[name]}" for name in ("python", *packages))]
    lines += [
        f"- Limit, of a product and a copy in torch: {flops:.0f} TFLOP/s, {bytes_per_s:.2f} TB/s"
    ]
    named = ", ".join(f"{name} {worst:.1g}" for name, worst in differences)
    lines += [f"- Largest difference of a logit to torch eager: {named}"]
    layers = (
        f"{name} {ours * 1e6:.1f} µs, torch {peer * 1e6:.1f}"
        for name, (ours, peer) in found.linear_s.items()
    )
    lines += [f"- A linear layer, rows by features, f16: {'; '.join(layers)}"]
    lines += [f"- **FAILED**: {failure}" for failure in found.failures]
    for model in dict.fromkeys(cell.model for cell in found.encoders.cells):
        lines += ["", *_encoder(found, model, ours, peers)]
    if found.http.cells:
        lines += ["", *_http(found)]
    return "\n".join(lines) + "\n"


def _encoder(found, model, ours, peers):
    yield f"## {model}"
    yield ""
    yield (
        "Medians in ms, from token ids in the host's memory to logits there, f16; `×` ratios above 1:"
        " we are faster. Only we and torch varlen do not pad to the longest text of a batch. Limit:"
        " least possible time ÷ our median."
    )
    yield ""
    columns = ["batch", f"{ours} [p10–p90]", *peers, *(f"× {name}" for name in peers), "of limit"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for cell in found.encoders.cells:
        if (cell.model, cell.engine) == (model, ours):
            yield f"| {' | '.join(_row(found, cell, peers))} |"


def _row(found, cell, peers):
    seen = cell.timings
    low, high = seen.percentile_ms(0.1), seen.percentile_ms(0.9)
    place = (cell.model, cell.num_threads, cell.workload)
    others = [found.encoders.cell(*place, name) for name in peers]
    ratios = [found.encoders.speed_ratio(cell, name) for name in peers]
    return [
        cell.workload,
        f"**{seen.median_ms:.3f}** [{low:.3f}–{high:.3f}]",
        *(f"{other.timings.median_ms:.3f}" if other else "–" for other in others),
        *(f"{ratio:.2f}" if ratio else "–" for ratio in ratios),
        f"{cell.limit_share:.0%}",
    ]


def _http(found):
    yield "## DistilBERT over HTTP, closed loop"
    yield ""
    mean_tokens = mean_sst2_length()
    settings = ", ".join(f"{name}={value}" for name, value in gpu_http.SERVICE_SETTINGS.items())
    yield (
        f"Medians of runs; of {gpu_http.NUM_GENERATORS} generators with most callers, which share the"
        f" CPUs, the longest latencies. SST-2: {mean_tokens:.1f} tokens a text. {FASTAPI}:"
        f" {settings}."
    )
    yield ""
    yield "| load | server | texts/s | tokens/s | P50 ms | P99 ms | failed | CPUs server, load |"
    yield "|---|---|---|---|---|---|---|---|"
    for place, cell in found.http.cells.items():
        is_mixed = place.load != gpu_http.ALONE
        times = [cell.latency_ms(which) for which in ("p50", "p99")]
        columns = [
            place.load,
            place.name,
            three_digits(cell.rps),
            f"{cell.rps * mean_tokens:.0f}" if is_mixed else "–",
            *(f"{each:.2f}" if each else "–" for each in times),
            str(cell.num_failed + cell.num_refused),
            f"{cell.server_cpus:.1f}, {cell.load_cpus:.1f}",
        ]
        yield f"| {' | '.join(columns)} |"


def drawn(found, model, reference):
    """An SVG of how fast each engine is on one model."""
    cells = [cell for cell in found.encoders.cells if cell.model == model]
    return chart.draw(f"{model} on {found.about['device']}", cells, reference)
