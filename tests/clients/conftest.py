"""Each function as a process, and one that is busy with a request of somebody else."""

import contextlib
import json
import socket
import sys
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from function import EMBED, PREDICT, RERANK, ROOT, running
from tokens import SECRET

CONFORMANCE = ROOT / "tests" / "conformance"
# rerank has no model of its own; these weights are seeded.
RERANKER = CONFORMANCE / "fixtures" / "reranker"
# Above what a model reads, so that texts can be truncated, and far below the default.
LIMITS = {"MAX_INPUT_CHARS": 2000}


@pytest.fixture(scope="module")
def predict():
    with running(**LIMITS) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="module")
def embed():
    with running(binary=EMBED, **LIMITS) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="module")
def rerank():
    with running(binary=RERANK, MODEL_URI=RERANKER, **LIMITS) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="module")
def secured():
    """`predict` for callers with a token, within limits that nobody reaches."""
    settings = {"AUTH": "jwt", "JWT_SECRET": SECRET, "RATE_LIMITS": "user=1000000/s"}
    with running(**LIMITS, **settings) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="session")
def cases():
    """Texts with known answers, by function; all are short enough."""

    def short(case) -> bool:
        texts = case.get("texts", [case])
        return all(len(text["text"]) <= LIMITS["MAX_INPUT_CHARS"] for text in texts)

    files = {
        name: CONFORMANCE / "cases" / f"{name}.json" for name in ("predict", "embed", "rerank")
    }
    return {
        name: [case for case in json.loads(file.read_text())["cases"] if short(case)]
        for name, file in files.items()
    }


@contextlib.contextmanager
def busy(binary, **settings):
    """A function that answers one request at a time, and has one whose body never ends.

    Gives the function and how to end that request.
    """
    with running(binary=binary, **settings, MAX_CONCURRENT_REQUESTS=1) as function:
        function.wait_until_healthy()
        with socket.create_connection(("127.0.0.1", function.port), timeout=30) as caller:
            caller.sendall(
                b"POST /%s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"expect: 100-continue\r\ncontent-length: 100\r\n\r\n" % binary.name.encode()
            )
            # Its body is waited for by now, so it holds the only place.
            assert caller.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            yield function, caller.close


@pytest.fixture
def busy_predict():
    with busy(PREDICT) as function_and_end:
        yield function_and_end


@pytest.fixture
def busy_embed():
    with busy(EMBED) as function_and_end:
        yield function_and_end


@pytest.fixture
def busy_rerank():
    with busy(RERANK, MODEL_URI=RERANKER) as function_and_end:
        yield function_and_end


@pytest.fixture(scope="session")
def model_name():
    """What a function's model is called."""
    return lambda function: httpx.get(f"{function.url}/health").json()["model"]
