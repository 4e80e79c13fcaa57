"""The table of `tests/bench cold`, in Markdown."""

import datetime
import platform
import statistics
from importlib.metadata import version

from .contestants import WARM
from .engines import PEERS
from .report import machine, revision
from .results import three_digits
from .starts import PATIENT_FROM_SECS, PATIENT_RETRY_SECS, RETRY_SECS

SHOWN_OF_SERVICE = ("fastapi", "uvicorn", "pydantic", "transformers", "torch")


def table(results, plan):
    """Everything a reader needs to judge the figures, then the figures."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    title = "# Cold start against its peers"
    lines = [title if plan.is_whole else f"{title} (a restricted run)", ""]
    lines += [f"- {date}, sanderling {revision()}, written by `tests/bench cold`"]
    lines += [machine(), f"- {_versions()}"]
    lines += [f"- {_method(results)}", f"- {_disturbance(results)}"]
    lines += [f"- {each}" for each in results.settings]
    lines += [f"- **FAILED**: {failure}" for failure in results.failures]
    for model in dict.fromkeys(row.model for row in results.rows):
        lines += ["", *_section(results, model)]
    lines += ["", *_stages(results)]
    return "\n".join(lines) + "\n"


def _versions():
    pins = (PEERS / "fastapi" / "requirements.txt").read_text(encoding="ascii").splitlines()
    pinned = dict(pin.split("==") for pin in pins if "==" in pin)
    service = ", ".join(f"{name} {pinned[name]}" for name in SHOWN_OF_SERVICE)
    ort = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "tokenizers", "numpy"))
    return f"Python {platform.python_version()}; {ort}; the service: {service}"


def _method(results):
    return (
        "From just before `exec` to the last byte of the first right answer, page cache warm, one"
        f" process at a time; the client connects again every {RETRY_SECS * 1e3:g} ms, from"
        f" {PATIENT_FROM_SECS * 1e3:.0f} ms on every {PATIENT_RETRY_SECS * 1e3:g} ms. Starting"
        f" `/bin/true` and waiting for its end takes {results.exec_ms:.1f} ms."
    )


def _disturbance(results):
    if not results.other_cpus:
        return "CPUs that others used meanwhile: unknown"
    median, worst = statistics.median(results.other_cpus), max(results.other_cpus)
    return f"CPUs that others used meanwhile: median of rounds {median:.2f}, worst {worst:.2f}"


def _section(results, model):
    rows = [row for row in results.rows if row.model == model and row.starts]
    yield f"## {model}"
    yield ""
    yield (
        "× ours: how many times sooner ours answers from a warm cache. × floor: first answer ÷ the"
        " time of a plain download of the weights where they come from S3, else of reading them"
        f" once from memory at {results.memory_bytes_per_s / 1e9:.0f} GB/s. Memory: MB of 10⁶"
        " bytes; resident after the first answer."
    )
    yield ""
    yield (
        "| contestant | first answer, median ms [p10–p90] | × ours | × floor | weights MB"
        " | peak MB | resident MB | − weights | starts |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(_columns(results, row))} |"
    yield ""
    for row in rows:
        if row.downloads_ms:
            yield f"- Download, {row.contestant.name.rpartition(', ')[2]}: {_download(row)}"
    if start := results.packing.get(model):
        yield (
            "- Ours on an empty cache, which packs the export first, one start:"
            f" {start.answer_ms / 1e3:.2f} s, peak {start.peak_bytes / 1e6:.0f} MB"
        )
    if model in results.shared_bytes:
        shares = " and ".join(f"{each / 1e6:.1f}" for each in results.shared_bytes[model])
        yield f"- Two processes of ours at once on one cache: PSS {shares} MB"


def _columns(results, row):
    low, high = row.percentile_ms(0.1), row.percentile_ms(0.9)
    ratio = results.speed_ratio(row.model, WARM, row.contestant.name)
    columns = [
        row.contestant.name,
        f"{three_digits(row.median_ms)} [{three_digits(low)}–{three_digits(high)}]",
        "–" if ratio is None else f"{ratio:.2f}",
        f"{row.over_floor:.2f}" if row.downloads_ms else f"{row.over_floor:.0f}",
        f"{row.weights_bytes / 1e6:.1f}",
        f"{row.peak_bytes / 1e6:.1f}",
        f"{row.resident_bytes / 1e6:.1f}",
        f"{(row.resident_bytes - row.weights_bytes) / 1e6:.1f}",
        str(len(row.starts)),
    ]
    if row.contestant.name.startswith("sanderling"):
        columns[:2] = [f"**{column}**" for column in columns[:2]]
    return columns


def _download(row):
    rate = row.weights_bytes * 8 / row.download_ms / 1e3
    return (
        f"{three_digits(row.download_ms)} ms for `weights.bin`, in ranges of 8 MiB over one"
        f" connection, {rate:.0f} Mbit/s"
    )


def _stages(results):
    rows = [row for row in results.rows if row.starts and row.stages()]
    if not rows:
        return
    yield "## Stages"
    yield ""
    yield "Medians, as the first answer of ours reports them; they overlap."
    yield ""
    yield "| model | contestant | stage | begins at ms | lasts ms |"
    yield "|---|---|---|---|---|"
    for row in rows:
        for stage in row.stages():
            yield (
                f"| {row.model} | {row.contestant.name} | {stage.name}"
                f" | {three_digits(stage.start_ms)} | {three_digits(stage.duration_ms)} |"
            )
