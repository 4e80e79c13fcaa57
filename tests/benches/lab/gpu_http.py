"""`POST /predict` over HTTP on loopback: our function on a GPU, and FastAPI with transformers there.

Both have the same weights, in f16, and take turns. The service makes batches of what waits, at once,
which suits it best.
"""

import contextlib
import os
import subprocess
import sys

from . import contestants, encoders, load, models, starts, texts
from .load import Traffic
from .servers import FASTAPI, Server
from .starts import NEW_FOLDER, PORT, Answer, Program, StartError

OURS = "sanderling"
PART = "http"
SERVICE_SETTINGS = {"DTYPE": "float16", "MAX_BATCH_SIZE": "64", "MAX_BATCH_WAIT_MS": "0"}
# Fewer than are answered at once, which is 512.
NUM_GENERATORS, CALLERS_OF_EACH = 4, 96
ALONE, SOME = "1 caller, a short text", "64 callers, SST-2"
MANY = f"{NUM_GENERATORS * CALLERS_OF_EACH} callers, SST-2"
ROUNDS, SECS = 3, 2.0
QUICK_ROUNDS, QUICK_SECS = 1, 1.5
# Of a score, in f16.
TOLERANCE = 0.02


def compare(results, shape, onnx, folder, function, packer, generator, is_quick):
    """Fills `results` with what is seen of both; gives what could not be started.

    `function` is our binary, `packer` makes what it reads, `generator` sends.
    """
    model = models.write_random(shape, encoders.random_weights(shape), onnx, folder)
    bundle = folder / "bundle"
    subprocess.run([packer, "pack", model.export, bundle], stdout=sys.stderr, check=True)
    loads = _loads(folder, generator, QUICK_SECS if is_quick else SECS, model.text)
    running, failures = {}, []
    with contextlib.ExitStack() as stack:
        for server in (_ours(model, bundle, function), _service(model)):
            try:
                start = stack.enter_context(starts.started(server.program, server.answer))
            except StartError as error:
                failures.append(f"{server.name}: {error}")
            else:
                running[server.name] = start
        for _ in range(QUICK_ROUNDS if is_quick else ROUNDS):
            for name, traffic in loads.items():
                for server, start in running.items():
                    print(f"{PART}: {name}: {server}", file=sys.stderr, flush=True)
                    results.record(PART, name, server, load.run(start, traffic))
    return failures


def _loads(folder, generator, secs, short_text):
    short, sst2 = folder / "short.jsonl", folder / "sst2.jsonl"
    texts.write([short_text], short)
    texts.write(texts.sst2(), sst2)
    many = {"callers": CALLERS_OF_EACH, "num_generators": NUM_GENERATORS}
    return {
        ALONE: Traffic(secs, short, callers=1, binary=generator),
        SOME: Traffic(secs, sst2, callers=64, binary=generator),
        MANY: Traffic(secs, sst2, **many, binary=generator),
    }


def _ours(model, bundle, function):
    settings = {"PORT": PORT, "MODEL_URI": str(bundle), "CACHE_DIR": NEW_FOLDER}
    settings |= {"MAX_BATCH_REQUESTS": "256"}
    return _server(OURS, model, Program((function,), settings))


def _service(model):
    program = contestants.service(model, 1, None, python=sys.executable, **SERVICE_SETTINGS)
    return _server(FASTAPI, model, program)


def _server(name, model, program):
    """With what the process itself was given, such as where the driver's libraries are."""
    program = Program(program.command, os.environ | program.environment)
    return Server(name, program, Answer(model.text, model.label, model.score, TOLERANCE))
