"""Who starts against whom in `tests/bench cold`: how each is built, what it reads, its settings."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import models, object_store, ort_files
from .engines import LAB, OWN_TARGET, PEERS, SERVICE_PYTHON
from .starts import NEW_FOLDER, PORT, Program

ROOT = LAB.parent.parent.parent
PREDICT, EMBED = OWN_TARGET / "dist" / "predict", OWN_TARGET / "dist" / "embed"
SANDERLING = OWN_TARGET / "release" / "sanderling"
PREDICT_GPU, GPU_CHECK = OWN_TARGET / "dist" / "predict-gpu", OWN_TARGET / "release" / "gpu-check"
GPU_LINEAR = OWN_TARGET / "release" / "gpu-linear"
STORE_BINARY = OWN_TARGET / "release" / "object-store"
BUCKET = "models"

WARM, PACKED = "sanderling, warm cache", "sanderling, packed folder"
FROM_S3, FROM_SLOW_S3 = "sanderling, S3", "sanderling, S3 at 400 Mbit/s"
OURS = (WARM, PACKED, FROM_S3, FROM_SLOW_S3)
ORT, ORT_PLAIN = "ONNX Runtime int8", "ONNX Runtime int8, plain"
FASTAPI = "FastAPI, transformers"
SLOW_MBIT_PER_S = 400

# A score in 8 bits, or in f32 of another engine, may be this far from ONNX Runtime's in f32.
INT8_TOLERANCE, F32_TOLERANCE = 0.05, 1e-4


@dataclass(frozen=True)
class Contestant:
    """What is started again and again."""

    name: str
    program: Program
    tolerance: float
    # The file that holds most of what it reads.
    weights: Path
    # If they come over a network: from where, and by what path.
    store: object_store.ObjectStore | None = None
    path: str = ""


def build():
    """Builds our function as it is shipped, and what the benchmark needs of ours beside it.

    Gives what could not be built. Nothing of that is left from an earlier run.
    """
    return [
        *build_function(),
        *_cargo_build("object-store-for-tests", STORE_BINARY, "release"),
    ]


def build_function():
    """The same, without what only cold starts need."""
    return [*build_predict(), *_cargo_build("sanderling-cli", SANDERLING, "release")]


def build_predict():
    """Builds the function `predict` as it is shipped; gives it if it could not be built."""
    return _cargo_build("predict", PREDICT, "dist")


def build_embed():
    """Builds the function `embed` as it is shipped; gives it if it could not be built."""
    return _cargo_build("embed", EMBED, "dist")


def build_gpu():
    """Builds the function `predict-gpu`, what packs its model, and what checks and times its kernels."""
    return [
        *_cargo_build("predict-gpu", PREDICT_GPU, "dist"),
        *_cargo_build("sanderling-cli", SANDERLING, "release"),
        *_cargo_build("emulator-for-tests", GPU_CHECK, "release"),
        *_cargo_build("emulator-for-tests", GPU_LINEAR, "release"),
    ]


def _cargo_build(package, binary, profile):
    binary.unlink(missing_ok=True)
    command = ["cargo", "build", f"--profile={profile}", f"--package={package}"]
    command += [f"--target-dir={OWN_TARGET}"]
    # Optimizing across crates takes minutes; what is not timed does without.
    lto = {} if profile == "dist" else {"CARGO_PROFILE_RELEASE_LTO": "off"}
    subprocess.run(command, cwd=ROOT, env=os.environ | lto, check=False)
    return [] if binary.exists() else [f"{binary.name} cannot be built"]


def pack(model):
    """The model packed for int8 by this very `sanderling`, in the bucket of its object store."""
    digest = hashlib.sha256(SANDERLING.read_bytes()).hexdigest()[:12]
    bucket = store_root(model) / BUCKET
    folder = bucket / digest
    if not folder.exists():
        shutil.rmtree(bucket, ignore_errors=True)
        bucket.mkdir(parents=True)
        command = [SANDERLING, "pack", model.export, folder, "--quantize=int8"]
        command += ["--force"] * model.is_random
        subprocess.run(command, stdout=sys.stderr, check=True)
    return folder


def store_root(model):
    return model.checkpoint.parent / "store"


def ours(model, cache, packed, stores):
    """Our function, from each place that it can have the model from.

    `stores` are object stores of `store_root`: one as fast as it is, one with a limited rate.
    """

    def contestant(name, model_uri, cache_dir, **rest):
        settings = {
            "PORT": PORT,
            "MODEL_URI": str(model_uri),
            "CACHE_DIR": str(cache_dir),
            "LOG_FORMAT": "json",
        }
        program = Program((PREDICT,), settings | object_store.CREDENTIALS)
        weights = packed / "weights.bin"
        return Contestant(name, program, INT8_TOLERANCE, weights, **rest)

    yield contestant(WARM, model.export, cache)
    yield contestant(PACKED, packed, cache)
    for name, store in zip((FROM_S3, FROM_SLOW_S3), stores, strict=True):
        uri = store.uri(BUCKET, packed.name)
        path = f"/{BUCKET}/{packed.name}/weights.bin"
        yield contestant(name, uri, NEW_FOLDER, store=store, path=path)


def ort_candidates(model):
    """Every way to start ONNX Runtime that a pilot tries, by its description."""
    loads = {
        "optimizing at the start": (models.QUANTIZED, {}),
        "optimized before": (models.MAPPED, {}),
        "optimized and prepacked before": (models.PREPACKED, {}),
        "optimized before, never prepacked": (models.MAPPED, {"session.disable_prepacking": "1"}),
    }
    for (fusion, paths), load in itertools.product(model.ort.items(), loads):
        form, entries = loads[load]
        yield f"{fusion}, {load}", _ort(ORT, model, paths[form], form, entries)


def ort_plain(model):
    """ONNX Runtime as `quantize_dynamic` and its own defaults leave it."""
    path = model.ort[ort_files.AS_EXPORTED][models.QUANTIZED]
    return _ort(ORT_PLAIN, model, path, models.QUANTIZED, {})


def _ort(name, model, path, form, entries):
    optimize = form == models.QUANTIZED
    settings = {"num_threads": os.cpu_count(), "optimize": optimize, "entries": entries}
    script = PEERS / "onnxruntime" / "first_answer.py"
    command = (sys.executable, script, path, model.export, json.dumps(settings), model.text)
    # numpy starts a thread for each CPU otherwise, which takes as long as all else of it.
    program = Program(command, {"OPENBLAS_NUM_THREADS": "1"}, over_http=False)
    weights = path if optimize else path.with_name(f"{path.name}.data")
    return Contestant(name, program, INT8_TOLERANCE, weights)


def fastapi_candidates(model):
    """Ways to spread the service over the CPUs, by their description."""
    num_cpus = os.cpu_count()
    yield f"1 worker of {num_cpus} threads", fastapi(model, 1, num_cpus)
    yield "1 worker of 1 thread", fastapi(model, 1, 1)
    yield f"{num_cpus} workers of 1 thread", fastapi(model, num_cpus, 1)
    yield "4 workers, torch's own threads", fastapi(model, 4, None)


def fastapi(model, num_workers, num_threads):
    """The service that we replace; no batch is worth waiting for with one caller."""
    program = service(model, num_workers, num_threads, MAX_BATCH_WAIT_MS="0")
    weights = model.checkpoint / "model.safetensors"
    return Contestant(FASTAPI, program, F32_TOLERANCE, weights)


def service(model, num_workers, num_threads, python=SERVICE_PYTHON, **settings):
    """How the service of peers/fastapi is started; without a number, torch chooses its threads."""
    command = (python, "-m", "uvicorn", f"--app-dir={PEERS / 'fastapi'}", "service:app")
    command += (f"--port={PORT}", f"--workers={num_workers}", "--log-level=warning")
    settings |= {
        "MODEL": str(model.checkpoint),
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if num_threads:
        settings["NUM_THREADS"] = str(num_threads)
    return Program(command, settings)
