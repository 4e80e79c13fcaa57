"""Functions for a GPU, on a machine that has none, and on the emulator of one."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from function import EMULATED_GPU, PREDICT, ROOT, SANDERLING, run_to_end, running
from metrics import value

BODIES = {
    "predict": {"text": "hello"},
    "embed": {"inputs": "hello"},
    "rerank": {"query": "hello", "texts": ["good day"]},
}
NO_DRIVER = "no driver of a GPU: libcuda.so.1 is not there"


# One that there is, so that nothing is missing but a GPU.
MODEL = ROOT / "functions" / "predict" / "model"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bundled models as bundles, by function."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("predict", "embed"):
        model = ROOT / "functions" / name / "model"
        assert run_to_end("pack", model, folder / name, binary=SANDERLING).returncode == 0
    return {name: folder / name for name in ("predict", "embed")}


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


def test_a_gpu_without_kernels_is_told_which_there_are():
    settings = EMULATED_GPU | {"EMULATED_CAPABILITY": "7.0"}
    with running(binary=binary("predict"), MODEL_URI=MODEL, **settings) as function:
        reason = function.wait_for_log("no model")["exception"]
        assert "emulated GPU is of compute capability 7.0; there are kernels for sm_75," in reason
        assert httpx.get(f"{function.url}/health").status_code == 503
        assert function.terminate() == 0


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_a_packed_classifier_answers_as_on_the_cpu(packed, capability):
    text, settings = "This movie is amazing!", EMULATED_GPU | {"EMULATED_CAPABILITY": capability}
    with running(MODEL_URI=packed["predict"]) as on_cpu:
        on_cpu.wait_until_healthy()
        expected = on_cpu.predict(text=text, top_k=2).json()
    with running(binary=binary("predict"), MODEL_URI=packed["predict"], **settings) as function:
        function.wait_until_healthy()
        answer = function.predict(text=text, top_k=2).json()
        assert function.terminate() == 0
    assert [label["label"] for label in answer] == [label["label"] for label in expected]
    for label, same in zip(answer, expected, strict=True):
        assert label["score"] == pytest.approx(same["score"], abs=1e-3)


def test_a_packed_embedder_answers_as_on_the_cpu(packed):
    vectors = []
    for each, settings in ((PREDICT.with_name("embed"), {}), (binary("embed"), EMULATED_GPU)):
        with running(binary=each, MODEL_URI=packed["embed"], **settings) as function:
            function.wait_until_healthy()
            vectors.append(function.post("/embed", inputs="a good day").json()[0])
            assert function.terminate() == 0
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-3)


def test_batches_run_beside_each_other_and_metrics_say_what_of_the_gpu_is_used(packed):
    texts = [f"{word} movie" for word in ("a good", "a bad", "no", "this")]
    settings = EMULATED_GPU | {"MAX_BATCH_REQUESTS": 1, "MODEL_URI": packed["predict"]}
    with running(binary=binary("predict"), **settings) as function:
        function.wait_until_healthy()
        alone = [function.predict(text=text).json() for text in texts]
        with ThreadPoolExecutor(len(texts)) as callers:
            together = list(callers.map(lambda text: function.predict(text=text).json(), texts))
        assert together == alone
        busy = value(function.url, "inference_busy_seconds_sum")
        assert 0 < busy < value(function.url, "inference_forward_seconds_sum"), "two at once"
        assert value(function.url, "inference_max_batch_tokens") == 16384
        allocated = value(function.url, "gpu_memory_allocated_bytes")
        # In 16 bits on the GPU, and in 32 in the bundle.
        assert (packed["predict"] / "weights.bin").stat().st_size / 2 < allocated
        assert allocated < value(function.url, "gpu_memory_bytes") == 4 * 2**30
        assert function.terminate() == 0


def test_a_lost_gpu_makes_it_unready(packed):
    # One pass of the start, and one of a request.
    settings = EMULATED_GPU | {"EMULATED_PASSES": 2, "MODEL_URI": packed["predict"]}
    with running(binary=binary("predict"), **settings) as function:
        function.wait_until_healthy()
        assert function.predict(text="hello").status_code == 200
        for _ in range(2):
            refused = function.predict(text="hello")
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                503,
                "model_unavailable",
            )
        exception = function.wait_for_log("no answer")["exception"]
        assert "cuStreamSynchronize" in exception and "ILLEGAL_ADDRESS" in exception
        health = httpx.get(f"{function.url}/health")
        assert health.status_code == 503
        assert health.json()["reason"] == "the device that runs the model is lost"
        assert httpx.get(f"{function.url}/v2/health/ready").status_code == 503
        assert function.terminate() == 0
