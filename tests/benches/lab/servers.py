"""Who serves in `tests/bench http` and `soak`: how each is started, and with which settings."""

import contextlib
import dataclasses
import os
import sys
import time
from dataclasses import dataclass

from . import contestants, engines, models, ort_files, processes, starts
from .starts import PORT, Program

OURS, OURS_F32 = "sanderling int8", "sanderling f32"
FASTAPI, FASTAPI_ORT = "FastAPI, transformers", "FastAPI, ONNX Runtime int8"
NOOP = "sanderling without a model"
# As the service that we replace was described.
REPLACED_BATCHES = {"MAX_BATCH_SIZE": "8", "MAX_BATCH_WAIT_MS": "50"}
BATCHES = {
    "batches of 8 after 50 ms": REPLACED_BATCHES,
    "batches of 8 at once": {"MAX_BATCH_SIZE": "8", "MAX_BATCH_WAIT_MS": "0"},
    "no batches": {"MAX_BATCH_SIZE": "1"},
}
# A server has settled when its processes take less than this share of a CPU for so long.
IDLE_SHARE, IDLE_SECS, SETTLE_TIMEOUT_SECS = 0.1, 1.0, 120


@dataclass(frozen=True)
class Server:
    """A process, or several, that answer `POST /predict`."""

    name: str
    program: Program
    answer: starts.Answer


def build():
    """Builds what serves of ours, and the load generator; gives what could not be built."""
    return [*contestants.build_function(), *engines.build_load()]


@contextlib.contextmanager
def running(server):
    """Starts a server; gives its `Start` when it answers right and all its workers are ready."""
    with starts.started(server.program, server.answer) as start:
        _settle(start.pid, server.name)
        yield start


def _settle(pid, name):
    """Waits for workers that still load, of which nothing is seen but that they compute."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_SECS
    used_secs = processes.cpu_secs(processes.tree(pid))
    while time.monotonic() < deadline:
        time.sleep(IDLE_SECS)
        before, used_secs = used_secs, processes.cpu_secs(processes.tree(pid))
        if used_secs - before < IDLE_SHARE * IDLE_SECS:
            return
    raise starts.StartError(f"{name}: still busy after {SETTLE_TIMEOUT_SECS} s")


def ours(model, cache, **settings):
    """Our function with its defaults, but for `settings`."""
    settings = {"MODEL_URI": str(contestants.pack(model))} | settings
    answer = _answer(model, contestants.INT8_TOLERANCE)
    return _function(OURS, contestants.PREDICT, cache, answer, settings)


def ours_f32(model, cache):
    settings = {"MODEL_URI": str(model.export), "PRECISION": "f32"}
    answer = _answer(model, contestants.F32_TOLERANCE)
    return _function(OURS_F32, contestants.PREDICT, cache, answer, settings)


def noop(model, cache, **settings):
    """Our function with an engine that finds all labels equally likely."""
    settings = {"MODEL_URI": str(model.export)} | settings
    answer = starts.Answer(model.text, models.LABELS["0"], 1 / len(models.LABELS), 1e-6)
    return _function(NOOP, engines.NOOP, cache, answer, settings)


def _function(name, binary, cache, answer, settings):
    program = Program((binary,), {"PORT": PORT, "CACHE_DIR": str(cache)} | settings)
    return Server(name, program, answer)


def _answer(model, tolerance):
    return starts.Answer(model.text, model.label, model.score, tolerance)


@dataclass(frozen=True)
class Spread:
    """How a service is spread over the CPUs."""

    num_workers: int
    # Of torch or of a session, in each worker; None: torch chooses.
    num_threads: int | None
    # Texts or batches that run at once, in each worker.
    num_executor_threads: int = 1

    def __str__(self):
        threads = "torch's own threads" if self.num_threads is None else _some(self.num_threads)
        at_once = f", {self.num_executor_threads} texts at once"
        return (
            f"{self.num_workers} worker{'s' * (self.num_workers > 1)} of {threads}"
            f"{at_once * (self.num_executor_threads > 1)}"
        )

    @property
    def settings(self):
        return {"NUM_EXECUTOR_THREADS": str(self.num_executor_threads)}


def _some(num_threads):
    return f"{num_threads} thread{'s' * (num_threads > 1)}"


ONE_WORKER = Spread(1, os.cpu_count())
ONE_WORKER_ONE_TEXT_A_CPU = Spread(1, 1, os.cpu_count())
ONE_WORKER_A_CPU = Spread(os.cpu_count(), 1)


def fastapi(model, spread, **settings):
    """The service that we replace."""
    settings = REPLACED_BATCHES | spread.settings | settings
    program = contestants.service(model, spread.num_workers, spread.num_threads, **settings)
    return Server(FASTAPI, program, _answer(model, contestants.F32_TOLERANCE))


def fastapi_spreads():
    """What a pilot tries; the last is how it was run."""
    return (ONE_WORKER, ONE_WORKER_A_CPU, Spread(4, 1), Spread(4, None))


@dataclass(frozen=True)
class OrtSettings:
    """How the service runs ONNX Runtime."""

    spread: Spread
    batches: str
    fusion: str = ort_files.FUSED
    idle: str = "spin"

    def __str__(self):
        return f"{self.spread}, {self.batches}, graph {self.fusion}, idle threads {self.idle}"


def fastapi_ort(model, settings):
    """The service with ONNX Runtime, which maps a graph in 8 bits that it optimized before."""
    graph = model.ort[settings.fusion][models.PREPACKED]
    program = contestants.service(
        model,
        settings.spread.num_workers,
        settings.spread.num_threads,
        python=sys.executable,
        ENGINE="onnxruntime",
        GRAPH=str(graph),
        IS_OPTIMIZED="1",
        IDLE_THREADS=settings.idle,
        **BATCHES[settings.batches],
        **settings.spread.settings,
    )
    return Server(FASTAPI_ORT, program, _answer(model, contestants.INT8_TOLERANCE))


def ort_spreads():
    """What the first pilot tries."""
    after_wait, at_once, none = BATCHES
    return (
        OrtSettings(ONE_WORKER, after_wait),
        OrtSettings(ONE_WORKER, at_once),
        OrtSettings(ONE_WORKER, none),
        OrtSettings(ONE_WORKER_ONE_TEXT_A_CPU, none),
        OrtSettings(ONE_WORKER_A_CPU, at_once),
        OrtSettings(ONE_WORKER_A_CPU, none),
    )


def ort_variations(best):
    """What the second pilot tries: the best of the first, with another graph, with parked threads."""
    yield best
    yield dataclasses.replace(best, fusion=ort_files.AS_EXPORTED)
    if best.spread.num_threads > 1:
        yield dataclasses.replace(best, idle="park")
        yield dataclasses.replace(best, fusion=ort_files.AS_EXPORTED, idle="park")
