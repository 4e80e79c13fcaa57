"""The engines that are compared: how they are built, what they read, how they are started."""

import hashlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import encoders, ort_files
from .ab import Worker
from .results import OURS

LAB = Path(__file__).resolve().parent
PEERS = LAB.parent / "peers"
TARGET = LAB.parent.parent.parent / "target"
MODELS_DIR = TARGET / "bench-models"
PEERS_TARGET = TARGET / "bench-peers"
OWN_TARGET = TARGET / "bench-own"

COLLECTOR = PEERS_TARGET / "release" / "collector"
LOAD = PEERS_TARGET / "release" / "load"
NOOP = OWN_TARGET / "dist" / "noop"

LIMIT_RUNS = 3
# Where tests/bench installs peers/fastapi.
SERVICE_PYTHON = TARGET / "bench-fastapi-venv" / "bin" / "python"


@dataclass(frozen=True)
class Engine:
    """What is compared: how its process is started, and in what it computes linear layers."""

    name: str
    precision: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """One model in the formats that the engines read."""

    exported: Path
    safetensors: Path
    # By precision, then by fusion.
    ort: dict[str, dict[str, Path]]


def build(with_slow_peers):
    """Builds the Rust workers: peers for this very CPU, ours as it is shipped, for any.

    Gives what could not be built. Nothing of that is left from an earlier run.
    """
    peers = ["candle", "rten", "tract"] if with_slow_peers else []
    native = {"RUSTFLAGS": "-C target-cpu=native"}
    failures = _cargo_build(PEERS_TARGET, ["limit", *peers], peers, native)
    return failures + _cargo_build(OWN_TARGET, ["sanderling"], ["sanderling"], {})


def build_gpu():
    """Builds our engine for a GPU; gives it if it could not be built."""
    return _cargo_build(OWN_TARGET, ["sanderling-gpu"], ["sanderling-gpu"], {}, profile="dist")


def build_limit():
    """Builds only what measures the machine's own limit; gives it if it could not be built."""
    return _cargo_build(PEERS_TARGET, ["limit"], [], {"RUSTFLAGS": "-C target-cpu=native"})


def build_load():
    """Builds the load generator; gives it if it could not be built."""
    return _cargo_build(PEERS_TARGET, ["load"], ["load"], {})


def build_collector():
    """Builds what takes traces and keeps none; gives it if it could not be built."""
    return _cargo_build(PEERS_TARGET, ["collector"], [], {})


def build_noop():
    """Builds the function without a model as `predict` is; gives it if it could not be built."""
    return _cargo_build(OWN_TARGET, ["noop"], ["noop"], {}, profile="dist")


def _cargo_build(target, binaries, features, environment, profile="release"):
    for binary in binaries:
        (target / profile / binary).unlink(missing_ok=True)
    command = ["cargo", "build", f"--profile={profile}", "--keep-going", f"--target-dir={target}"]
    command += [f"--features={','.join(features)}", *(f"--bin={binary}" for binary in binaries)]
    subprocess.run(command, cwd=PEERS, env=os.environ | environment, check=False)
    missing = [binary for binary in binaries if not (target / profile / binary).exists()]
    return [f"{binary} cannot be built" for binary in missing]


def measure_limit(num_threads):
    """Operations and bytes per second, by the names that peers/src/bin/limit.rs gives them.

    The highest of some runs: a neighbour can only make it look lower.
    """
    command = [PEERS_TARGET / "release" / "limit", str(num_threads)]
    runs = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(LIMIT_RUNS)
    ]
    return {name: max(run[name] for run in runs) for name in runs[0]}


def measure_call_overhead():
    """Microseconds that ONNX Runtime takes for a graph that computes next to nothing."""
    MODELS_DIR.mkdir(parents=True, exist_ok=True)
    path = MODELS_DIR / "nearly-empty.onnx"
    encoders.write_nearly_empty_onnx(path)
    worker = Worker("call overhead", ort_command(path, 1, "park"))
    with worker.awake():
        times = worker.time_ms("16", passes=2000, warmups=200)
    worker.close()
    return statistics.median(times) * 1e3


def write_models(shape):
    """Makes the files of a model, unless the same were made before."""
    sources = (LAB / "encoders.py", LAB / "ort_files.py", LAB.parent / "requirements.txt")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = MODELS_DIR / digest[:12]
    complete = folder / f"{shape.name}.complete"
    exported, safetensors = folder / f"{shape.name}.onnx", folder / f"{shape.name}.safetensors"
    paths = ort_files.paths(shape, exported, folder)
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        weights = encoders.random_weights(shape)
        encoders.write_onnx(shape, weights, exported)
        encoders.write_safetensors(weights, safetensors)
        ort_files.write(shape, exported, paths)
        complete.touch()
    return Files(exported, safetensors, paths)


def ort_command(path, num_threads, idle):
    worker = (sys.executable, "-m", "benches.lab.ort_worker")
    return (*worker, str(path), str(num_threads), idle)


def ort_candidates(precision, files, num_threads):
    """Every way to run ONNX Runtime that a pilot tries."""
    idle = ("spin", "park") if num_threads > 1 else ("park",)
    return [
        Engine(f"{fusion}, {how}", precision, ort_command(path, num_threads, how))
        for fusion, path in files.ort[precision].items()
        for how in idle
    ]


def rust_engines(files, num_threads, with_slow_peers):
    def engine(name, precision, folder, path, *rest, **environment):
        binary = str(folder / "release" / name.split()[0])
        command = (binary, str(path), str(num_threads), *rest)
        return Engine(name, precision, command, environment)

    for precision, name in OURS.items():
        yield engine(name, precision, OWN_TARGET, files.exported, precision)
    if with_slow_peers:
        rayon = {"RAYON_NUM_THREADS": str(num_threads)}
        yield engine("rten int8", "int8", PEERS_TARGET, files.ort["int8"]["as exported"])
        yield engine("rten f32", "f32", PEERS_TARGET, files.exported)
        yield engine("tract f32", "f32", PEERS_TARGET, files.exported)
        yield engine("candle f32", "f32", PEERS_TARGET, files.safetensors, **rayon)
