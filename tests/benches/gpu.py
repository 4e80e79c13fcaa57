"""Inference on a GPU against torch: padded, compiled, and packed in a CUDA graph; then over HTTP
against FastAPI with transformers.

    tests/bench gpu [--quick] [--workers <folder>]

Each workload is measured A/B/A/B over all engines, each in a process of its own, from token ids in the
host's memory to logits there. Where nothing can be built or installed, `python -m benches.gpu` does, in
`tests`, with another Python that has what peers/torch/requirements.txt names, and `--workers` names a
folder with what was built elsewhere:

    cargo build --release -p emulator-for-tests -p sanderling-cli --bin gpu-check --bin gpu-linear \
        --bin sanderling
    cargo build --profile dist -p predict-gpu
    cd tests/benches/peers
    cargo build --profile dist --features load,sanderling-gpu --bin load --bin sanderling-gpu

First `gpu-check` runs, and answers are compared before they are timed. What fails is listed, and the
run goes on without it and ends with an error. gpu.json is written after each step, gpu.md and gpu.svg
by a whole run in which nothing failed. After `TIME_LIMIT_SECS` no workload is begun.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .lab import contestants, encoders, engines, gpu_http, gpu_report, http_results
from .lab.ab import Worker, WorkerError, measure
from .lab.load import LoadError
from .lab.results import Cell, Results, Workload, limit_ms
from .lab.servers import FASTAPI
from .lab.starts import StartError
from .lab.workload import equal_lengths, mixed_lengths

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
OURS, EAGER, COMPILED, VARLEN = "sanderling", "torch eager", "torch.compile", "torch varlen"
TORCH = {EAGER: "eager", COMPILED: "compile", VARLEN: "varlen"}
HEADLINE_MODEL, OTHER_MODEL = encoders.DISTILBERT, encoders.MINILM
PRECISION, NUM_THREADS = "f16", 1
# Batch size and length: one text, and batches up to where larger ones gain nothing.
SHAPES = ((1, 32), (1, 128), (1, 384), (176, 32), (44, 128), (14, 384), (128, 128))
QUICK_SHAPES = ((1, 32), (44, 128))
MIXED_SIZES = (32, 256)
SHORT, BATCH, MIXED = "1x32", "44x128", f"{MIXED_SIZES[-1]} mixed"
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn")
BUDGET_SECS, QUICK_BUDGET_SECS = 3, 1
AGREEMENT_WORKLOAD = "5,32,17,9;24;64,64"
# Of a logit, in f16; logits are of order one.
TOLERANCE = 0.02
# A machine that is lent may end a command after ten minutes.
TIME_LIMIT_SECS = 510
CHECK_TIMEOUT_SECS = 150
NO_GPU = 2
BINARIES = {
    "gpu-check": contestants.GPU_CHECK,
    "gpu-linear": contestants.GPU_LINEAR,
    "load": engines.LOAD,
    "predict-gpu": contestants.PREDICT_GPU,
    "sanderling": contestants.SANDERLING,
    "sanderling-gpu": engines.OWN_TARGET / "dist" / "sanderling-gpu",
}


@dataclass
class Found:
    """All that was found out."""

    about: dict[str, str]
    # What `gpu-check` said last.
    check: str
    # Operations and bytes per second.
    limits: dict[str, float]
    # Seconds of a linear layer, by us and by torch.
    linear_s: dict[str, tuple[float, float]] = field(default_factory=dict)
    encoders: Results = field(default_factory=Results)
    http: http_results.Results = field(default_factory=http_results.Results)
    failures: list[str] = field(default_factory=list)


def main():
    parser = argparse.ArgumentParser(prog="tests/bench gpu")
    parser.add_argument("--quick", action="store_true", help="one model, two shapes, no files")
    parser.add_argument("--workers", type=Path, help="a folder with the binaries")
    args = parser.parse_args()
    binaries = binaries_of(args.workers)
    deadline = time.monotonic() + TIME_LIMIT_SECS
    has_passed, check = run_checks(binaries["gpu-check"])
    say("limit of the GPU")
    found = Found(about(), check, json_of(sys.executable, "-m", "benches.lab.gpu_limit"))
    if not has_passed:
        found.failures.append(f"gpu-check: {check}")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        Bench(found, Path(folder), binaries, deadline, args.quick).run()
    table = gpu_report.table(found, OURS, tuple(TORCH), PACKAGES)
    print(table)
    if not (args.quick or found.failures):
        chart = gpu_report.drawn(found, HEADLINE_MODEL.name, VARLEN)
        (HERE / "gpu.md").write_text(table, encoding="utf-8")
        (HERE / "gpu.svg").write_text(chart, encoding="utf-8")
    print(json.dumps(summarize(found, args.quick)))
    if found.failures:
        sys.exit("\n".join(found.failures))


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def binaries_of(folder):
    """Paths by name; built, unless they are in a folder."""
    if folder:
        return {name: folder.resolve() / name for name in BINARIES}
    if missing := [*contestants.build_gpu(), *engines.build_gpu(), *engines.build_load()]:
        sys.exit("\n".join(missing))
    return BINARIES


def run_checks(check):
    """Whether all passed, and what `gpu-check` said last; ends the run without a GPU."""
    say("gpu-check")
    command = ["timeout", "--kill-after=5", str(CHECK_TIMEOUT_SECS), check, TESTS]
    checked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    say(checked.stdout)
    last = (checked.stdout.splitlines() or ["gpu-check said nothing"])[-1]
    if checked.returncode == NO_GPU:
        print(json.dumps({"bench": "gpu", "available": False}))
        sys.exit(last)
    return checked.returncode == 0, last


def json_of(*command):
    """What it prints."""
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return json.loads(ran.stdout)


def about():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    smi = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout
    device, driver, memory = smi.splitlines()[0].split(", ")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device,
        "driver": driver,
        "memory": memory,
        "python": platform.python_version(),
    } | {name: installed(name) for name in PACKAGES}


def installed(package):
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    found: Found
    folder: Path
    binaries: dict[str, Path]
    # After it no workload is begun.
    deadline: float
    is_quick: bool

    def run(self):
        self.compare_linear()
        self.compare_encoders(HEADLINE_MODEL)
        self.compare_over_http()
        if not self.is_quick:
            self.compare_encoders(OTHER_MODEL)

    def note(self, failure):
        say(f"FAILED: {failure}")
        self.found.failures.append(failure)
        self.write()

    def write(self):
        if not self.is_quick:
            raw = summarize(self.found, self.is_quick) | raw_of(self.found)
            (HERE / "gpu.json").write_text(json.dumps(raw), encoding="utf-8")

    def compare_linear(self):
        """Layers by themselves."""
        say("linear layers")
        try:
            ours = json_of(self.binaries["gpu-linear"])
            torch = json_of(sys.executable, "-m", "benches.lab.gpu_limit", *ours)
        except (OSError, subprocess.SubprocessError) as error:
            self.note(f"linear layers: {error}")
            return
        self.found.linear_s.update({name: (secs, torch[name]) for name, secs in ours.items()})

    def compare_encoders(self, shape):
        """All engines on all workloads, for one model."""
        onnx, safetensors = self.write_model(shape)
        python = (sys.executable, "-m", "benches.lab.torch_worker", str(safetensors))
        commands = {OURS: (str(self.binaries["sanderling-gpu"]), str(onnx), str(NUM_THREADS))}
        commands |= {name: (*python, how) for name, how in TORCH.items()}
        workers = self.start_workers(shape, commands)
        try:
            self.drop_wrong(shape, workers)
            for workload in workloads(self.is_quick):
                if time.monotonic() > self.deadline:
                    self.note(f"{shape.name}: no time left from {workload.name} on")
                    break
                self.compare(shape, workload, workers)
        finally:
            for worker in workers.values():
                worker.close()

    def write_model(self, shape):
        say(f"{shape.name}: models")
        onnx, safetensors = (
            self.folder / f"{shape.name}.{kind}" for kind in ("onnx", "safetensors")
        )
        weights = encoders.random_weights(shape)
        encoders.write_onnx(shape, weights, onnx)
        encoders.write_safetensors(weights, safetensors)
        return onnx, safetensors

    def start_workers(self, shape, commands):
        """Workers by name, of those that start."""
        workers = {}
        for name, command in commands.items():
            say(f"starting {name}")
            try:
                workers[name] = Worker(name, command)
            except WorkerError as error:
                self.note(f"{shape.name}: {error}")
        return workers

    def drop_wrong(self, shape, workers):
        """Leaves those that answer as torch does by itself."""
        answers = {}
        for name, worker in list(workers.items()):
            say(f"{shape.name}: answers of {name}")
            try:
                with worker.awake():
                    answers[name] = worker.logits(AGREEMENT_WORKLOAD)
            except WorkerError as error:
                self.note(f"{shape.name}: {error}")
                workers.pop(name).close()
        for name, logits in answers.items():
            reference = answers.get(EAGER, logits)
            # Unlike that of Python, this maximum is NaN if one of them is.
            difference = float(np.abs(np.subtract(logits, reference)).max())
            if not difference <= TOLERANCE:
                self.note(f"{shape.name}: answers of {name} differ by {difference:.2g}")
                workers.pop(name).close()
                continue
            known = self.found.encoders.differences
            known[name] = max(known.get(name, 0.0), difference)

    def compare(self, shape, workload, workers):
        """One workload on all workers; again without one that fails."""
        say(f"{shape.name}: {workload.name}")
        budget_secs = QUICK_BUDGET_SECS if self.is_quick else BUDGET_SECS
        while workers:
            try:
                timings = measure(list(workers.values()), workload.text, budget_secs)
            except WorkerError as error:
                self.note(f"{shape.name}: {workload.name}: {error}")
                workers.pop(error.name).close()
                continue
            least_ms = limit_ms(shape, workload, PRECISION, self.found.limits)
            place = (shape.name, NUM_THREADS, workload.name)
            self.found.encoders.cells += [
                Cell(*place, name, each, least_ms) for name, each in timings.items()
            ]
            self.write()
            return

    def compare_over_http(self):
        folder = self.folder / "http"
        folder.mkdir()
        onnx = self.folder / f"{HEADLINE_MODEL.name}.onnx"
        binaries = [self.binaries[name] for name in ("predict-gpu", "sanderling", "load")]
        compared = (HEADLINE_MODEL, onnx, folder, *binaries, self.is_quick)
        http = self.found.http
        try:
            failures = gpu_http.compare(http, *compared)
        except (LoadError, StartError, OSError, subprocess.SubprocessError) as error:
            failures = [error]
        failures += [
            f"{place.name}, {place.load}: {cell.num_failed + cell.num_refused} requests failed"
            for place, cell in http.cells.items()
            if cell.num_failed + cell.num_refused
        ]
        for failure in failures:
            self.note(f"over HTTP: {failure}")
        self.write()


def workloads(is_quick):
    equal = [Workload(*equal_lengths(*shape)) for shape in (QUICK_SHAPES if is_quick else SHAPES)]
    mixed = [Workload(f"{size} mixed", mixed_lengths(1, size)) for size in MIXED_SIZES]
    return [*equal, *mixed]


def raw_of(found):
    """All that was found out, as JSON."""
    samples = {}
    for cell in found.encoders.cells:
        passes_ms = [round(each, 4) for each in cell.timings.passes_ms]
        samples.setdefault(cell.model, {}).setdefault(cell.workload, {})[cell.engine] = passes_ms
    return {
        "about": found.about,
        "check": found.check,
        "limits": found.limits,
        "linear_s": found.linear_s,
        "differences": found.encoders.differences,
        "samples_ms": samples,
        "http": [
            dataclasses.asdict(place) | {"runs": [dataclasses.asdict(run) for run in cell.runs]}
            for place, cell in found.http.cells.items()
        ],
        "failures": found.failures,
    }


def summarize(found, is_quick):
    """The line of JSON: ratios above 1 mean we are faster; None where something was not measured."""

    def our_cell(workload):
        return found.encoders.cell(HEADLINE_MODEL.name, NUM_THREADS, workload, OURS)

    def ratio(workload, peer):
        cell = our_cell(workload)
        return rounded(cell and found.encoders.speed_ratio(cell, peer))

    short, batch = our_cell(SHORT), our_cell(BATCH)
    rps_ratio = found.http.rps_ratio(gpu_http.PART, gpu_http.MANY, gpu_http.OURS, FASTAPI)
    alone = found.http.cell(gpu_http.PART, gpu_http.ALONE, gpu_http.OURS)
    return {
        "bench": "gpu",
        "whole": not is_quick,
        "available": True,
        "failures": found.failures,
        "vs_torch_varlen": ratio(BATCH, VARLEN),
        "vs_torch_varlen_short": ratio(SHORT, VARLEN),
        "vs_torch_compile": ratio(BATCH, COMPILED),
        "vs_torch_eager_mixed": ratio(MIXED, EAGER),
        "gemm_vs_cublaslt_min": rounded(
            min((torch / ours for ours, torch in found.linear_s.values()), default=None)
        ),
        "limit_share_128": rounded(batch and batch.limit_share),
        "short_text_us": rounded(short and short.timings.median_ms * 1e3),
        "http_short_text_p50_ms": rounded(alone and alone.latency_ms("p50")),
        "http_rps_vs_fastapi": rounded(rps_ratio),
    }


def rounded(value):
    return value and round(value, 3)


if __name__ == "__main__":
    main()
