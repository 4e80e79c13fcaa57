"""Functions for a GPU, on a machine that has none, and on the emulator of one."""

import httpx
import pytest
from function import PREDICT, ROOT, SANDERLING, run_to_end, running

BODIES = {
    "predict": {"text": "hello"},
    "embed": {"inputs": "hello"},
    "rerank": {"query": "hello", "texts": ["good day"]},
}
NO_DRIVER = "no driver of a GPU: libcuda.so.1 is not there"


# One that there is, so that nothing is missing but a GPU.
MODEL = ROOT / "functions" / "predict" / "model"


EMULATED = PREDICT.with_name("predict-emulated")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bundled model as a bundle."""
    folder = tmp_path_factory.mktemp("gpu") / "packed"
    assert run_to_end("pack", MODEL, folder, binary=SANDERLING).returncode == 0
    return folder


def binary(name):
    return PREDICT.with_name(f"{name}-gpu")


@pytest.mark.parametrize("name", BODIES)
def test_it_is_not_ready_and_says_why(name):
    with running(binary=binary(name), MODEL_URI=MODEL) as function:
        line = function.wait_for_log("no model")
        assert NO_DRIVER in line["exception"]
        health = httpx.get(f"{function.url}/health")
        assert health.status_code == 503
        assert NO_DRIVER in health.json()["reason"]
        answer = function.post(f"/{name}", **BODIES[name])
        assert answer.status_code == 503
        assert function.terminate() == 0


@pytest.mark.parametrize("name", BODIES)
def test_a_check_fails(name):
    assert run_to_end("--check", binary=binary(name), MODEL_URI=MODEL).returncode == 1


def test_a_packed_model_answers_as_on_the_cpu(packed):
    text = "This movie is amazing!"
    with running(MODEL_URI=packed) as on_cpu:
        on_cpu.wait_until_healthy()
        expected = on_cpu.predict(text=text, top_k=2).json()
    with running(binary=EMULATED, MODEL_URI=packed, NUM_PASSES=1000) as function:
        function.wait_until_healthy()
        answer = function.predict(text=text, top_k=2).json()
        assert function.terminate() == 0
    assert [label["label"] for label in answer] == [label["label"] for label in expected]
    for label, same in zip(answer, expected, strict=True):
        assert label["score"] == pytest.approx(same["score"], abs=1e-3)


def test_a_lost_gpu_makes_it_unready(packed):
    # One pass of the start, and one of a request.
    with running(binary=EMULATED, MODEL_URI=packed, NUM_PASSES=2) as function:
        function.wait_until_healthy()
        assert function.predict(text="hello").status_code == 200
        for _ in range(2):
            refused = function.predict(text="hello")
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                503,
                "model_unavailable",
            )
        assert "an emulated fault" in function.wait_for_log("no answer")["exception"]
        health = httpx.get(f"{function.url}/health")
        assert health.status_code == 503
        assert health.json()["reason"] == "the device that runs the model is lost"
        assert httpx.get(f"{function.url}/v2/health/ready").status_code == 503
        assert function.terminate() == 0
