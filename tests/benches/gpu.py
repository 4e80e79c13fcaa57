"""Inference on a GPU against torch: padded, compiled, and packed in a CUDA graph.

    tests/bench gpu [--quick] [--workers <folder>]

Each workload is measured A/B/A/B over all engines, each in a process of its own, from token ids in the
host's memory to logits there. Where nothing can be built or installed, `python -m benches.gpu` does with
another Python that has torch and what requirements.txt names, and `--workers` names a folder with
`gpu-check` and `sanderling-gpu`, built elsewhere:

    cargo build --release -p emulator-for-tests --bin gpu-check
    cd tests/benches/peers && cargo build --profile dist --features sanderling-gpu --bin sanderling-gpu

First `gpu-check` runs: figures of wrong answers are none.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .lab import encoders, engines
from .lab.ab import Worker, measure
from .lab.results import Workload
from .lab.workload import equal_lengths, mixed_lengths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS, EAGER, COMPILED, VARLEN = "sanderling", "torch eager", "torch.compile", "torch varlen, graph"
TORCH = {EAGER: "eager", COMPILED: "compile", VARLEN: "varlen"}
MODELS = (encoders.DISTILBERT, encoders.MINILM)
# Batch size and length: one text, and batches up to where larger ones gain nothing.
SHAPES = ((1, 32), (1, 128), (1, 384), (176, 32), (44, 128), (14, 384), (128, 128))
QUICK_SHAPES = ((1, 32), (44, 128))
MIXED_SIZES = (32, 256)
BUDGET_SECS, QUICK_BUDGET_SECS = 3, 1
AGREEMENT_WORKLOAD = "5,32,17,9;24;64,64"
# Of a logit, in f16; logits are of order one.
TOLERANCE = 0.02


def main():
    parser = argparse.ArgumentParser(prog="tests/bench gpu")
    parser.add_argument("--quick", action="store_true", help="one model, two shapes, no files")
    parser.add_argument("--workers", type=Path, help="a folder with the binaries")
    args = parser.parse_args()
    check, worker = binaries(args.workers)
    checked = subprocess.run(
        [check, ROOT / "tests"], stdout=subprocess.PIPE, text=True, check=False
    )
    print(checked.stdout, file=sys.stderr, flush=True)
    if checked.returncode:
        sys.exit("gpu-check did not pass")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        samples = {
            shape.name: compared(shape, Path(folder), worker, args.quick)
            for shape in (MODELS[:1] if args.quick else MODELS)
        }
    found = {"about": about(), "check": checked.stdout.splitlines()[-1], "samples_ms": samples}
    table = table_of(found)
    print(table)
    if not args.quick:
        (HERE / "gpu.json").write_text(json.dumps(found), encoding="utf-8")
        (HERE / "gpu.md").write_text(table, encoding="utf-8")
    print(json.dumps(summarize(found, args.quick)))


def binaries(folder):
    """The checks, and our worker."""
    if folder:
        return folder / "gpu-check", folder / "sanderling-gpu"
    command = ["cargo", "build", "--release", "-p", "emulator-for-tests", "--bin", "gpu-check"]
    subprocess.run(command, cwd=ROOT, check=True)
    if missing := engines.build_gpu():
        sys.exit("\n".join(missing))
    return engines.TARGET / "release" / "gpu-check", engines.OWN_TARGET / "dist" / "sanderling-gpu"


def workloads(is_quick):
    equal = [Workload(*equal_lengths(*shape)) for shape in (QUICK_SHAPES if is_quick else SHAPES)]
    mixed = [Workload(f"{size} mixed", mixed_lengths(1, size)) for size in MIXED_SIZES]
    return [*equal, *mixed]


def compared(shape, folder, worker, is_quick):
    """Milliseconds of each pass, by workload and engine."""
    weights = encoders.random_weights(shape)
    onnx, safetensors = folder / f"{shape.name}.onnx", folder / f"{shape.name}.safetensors"
    encoders.write_onnx(shape, weights, onnx)
    encoders.write_safetensors(weights, safetensors)
    python = (sys.executable, "-m", "benches.lab.torch_worker", str(safetensors))
    workers = [Worker(OURS, (str(worker), str(onnx), "1"))]
    workers += [Worker(name, (*python, how)) for name, how in TORCH.items()]
    agree(workers)
    samples = {}
    for workload in workloads(is_quick):
        print(f"{shape.name}: {workload.name}", file=sys.stderr, flush=True)
        budget_secs = QUICK_BUDGET_SECS if is_quick else BUDGET_SECS
        timings = measure(workers, workload.text, budget_secs)
        samples[workload.name] = {name: each.passes_ms for name, each in timings.items()}
    for each in workers:
        each.close()
    return samples


def agree(workers):
    """Ends the run if answers differ."""
    answers = {}
    for worker in workers:
        with worker.awake():
            answers[worker.name] = worker.logits(AGREEMENT_WORKLOAD)
    ours = answers[OURS]
    for name, logits in answers.items():
        difference = max(abs(a - b) for a, b in zip(logits, ours, strict=True))
        if not difference <= TOLERANCE:
            sys.exit(f"answers of {name} differ by {difference:.2g}")


def about():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    smi = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    torch = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(torch, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, "gpu": smi, "torch": version, "python": platform.python_version()}


def table_of(found):
    about = found["about"]
    lines = ["# Inference on a GPU against torch", ""]
    lines += [
        f"- {about['date']}, written by `tests/bench gpu`; {about['gpu']}; torch {about['torch']}"
    ]
    lines += [
        f"- {found['check']}. Medians, from token ids in the host's memory to logits there; f16."
    ]
    lines += ["- torch is padded to the longest text of a batch, but for the last column."]
    names = (OURS, *TORCH)
    for model, by_workload in found["samples_ms"].items():
        lines += ["", f"## {model}", ""]
        lines += ["| batch | " + " | ".join(f"{name}, ms" for name in names) + " |"]
        lines += ["|---|" + "---|" * len(names)]
        for workload, samples in by_workload.items():
            cells = [f"{statistics.median(samples[name]):.3f}" for name in names]
            lines += [f"| {workload} | {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def summarize(found, is_quick):
    """Ratios above 1 mean that we are faster."""

    def ratio(workload, peer):
        samples = found["samples_ms"][encoders.DISTILBERT.name].get(workload)
        return samples and round(
            statistics.median(samples[peer]) / statistics.median(samples[OURS]), 3
        )

    return {
        "bench": "gpu",
        "whole": not is_quick,
        "gpu": found["about"]["gpu"],
        "vs_varlen_44x128": ratio("44x128", VARLEN),
        "vs_varlen_1x32": ratio("1x32", VARLEN),
        "vs_eager_mixed": ratio(f"{MIXED_SIZES[-1]} mixed", EAGER),
    }


if __name__ == "__main__":
    main()
