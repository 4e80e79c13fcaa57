"""The table of `tests/bench cpu`, in Markdown."""

import datetime
import os
import platform
import subprocess
import tomllib
from importlib.metadata import version

from .engines import PEERS
from .results import ORT_F32, ORT_INT8, three_digits

PRECISION_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def table(results, plan):
    """Everything a reader needs to judge the figures, then the figures."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    title = "# CPU inference against its peers"
    lines = [
        title if plan.is_whole else f"{title} (a restricted run: short, or of some shapes)",
        "",
    ]
    lines += [f"- {date}, sanderling {revision()}, written by `tests/bench cpu`"]
    lines += [machine(), f"- {_versions()}"]
    lines += ["- Peers in Rust are built for this very CPU, sanderling for any."]
    lines += [_onnx_runtime(results), *(f"  - {each}" for each in results.ort_settings)]
    lines += [f"- {_differences(results)}", f"- {_disturbance(results)}"]
    lines += [f"- **FAILED**: {failure}" for failure in results.failures]
    lines += ["", *_limits(results)]
    for model, num_threads in dict.fromkeys((c.model, c.num_threads) for c in results.cells):
        lines += ["", *_section(results, model, num_threads)]
    return "\n".join(lines) + "\n"


def revision():
    """Of the source, `-dirty` behind it if it was changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def machine():
    """A line about the machine."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in PRECISION_FLAGS if flag in fields.get("flags", "").split()]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    family = f"family {fields.get('cpu family')} model {fields.get('model')}"
    return (
        f"- {fields.get('model name', platform.machine())} ({family}), {os.cpu_count()} CPUs,"
        f" {memory_gib:.0f} GiB, {' '.join(flags)}, Linux {platform.release()}"
    )


def _onnx_runtime(results):
    return (
        "- ONNX Runtime has its own thread pool, inputs and outputs bound; a call that computes"
        f" next to nothing takes {results.call_overhead_us:.0f} µs, which its times include."
        " Pilots chose its graph, and whether idle threads spin or park:"
    )


def _versions():
    with open(PEERS / "Cargo.lock", "rb") as file:
        locked = {each["name"]: each["version"] for each in tomllib.load(file)["package"]}
    crates = {"tract": "tract-onnx", "rten": "rten", "candle": "candle-core"}
    found = [f"{name} {locked[crate]}" for name, crate in crates.items()]
    return f"ONNX Runtime {version('onnxruntime')} (ORT), " + ", ".join(found)


def _differences(results):
    found = ", ".join(f"{name} {worst:.1g}" for name, worst in results.differences.items())
    return f"Largest difference of a logit to ORT f32: {found}"


def _disturbance(results):
    median, high = results.other_cpus(), results.other_cpus(0.9)
    return f"CPUs that others used meanwhile: median {median:.2f}, 90th percentile {high:.2f}"


def _limits(results):
    yield "The machine's own limit, measured first:"
    yield ""
    yield "| threads | f32 GFLOP/s | bf16 GFLOP/s | int8 GOP/s | memory GB/s |"
    yield "|---|---|---|---|---|"
    for num_threads, limits in results.limits.items():
        rates = [f"{limits[f'{key}_per_s'] / 1e9:.0f}" for key in ("f32", "bf16", "int8", "bytes")]
        yield f"| {num_threads} | {' | '.join(rates)} |"


def _section(results, model, num_threads):
    yield f"## {model}, {num_threads} thread{'s' if num_threads > 1 else ''}"
    yield ""
    yield "`×` ratios above 1: faster than that peer. Limit: least possible time ÷ median."
    yield ""
    yield "| workload | engine | median ms [p10–p90] | × ORT int8 | × ORT f32 | of limit | passes |"
    yield "|---|---|---|---|---|---|---|"
    cells = [c for c in results.cells if (c.model, c.num_threads) == (model, num_threads)]
    workload = None
    for cell in cells:
        shown = cell.workload if cell.workload != workload else ""
        workload = cell.workload
        yield f"| {shown} | {_row(results, cell)} |"


def _row(results, cell):
    seen = cell.timings
    low, high = seen.percentile_ms(0.1), seen.percentile_ms(0.9)
    columns = [
        cell.engine,
        f"{three_digits(seen.median_ms)} [{three_digits(low)}–{three_digits(high)}]",
        *(_ratio(results.speed_ratio(cell, peer)) for peer in (ORT_INT8, ORT_F32)),
        f"{cell.limit_share:.0%}",
        str(len(seen.passes_ms)),
    ]
    if cell.engine.startswith("sanderling"):
        columns[:2] = [f"**{column}**" for column in columns[:2]]
    return " | ".join(columns)


def _ratio(ratio):
    return "–" if ratio is None else f"{ratio:.2f}"
