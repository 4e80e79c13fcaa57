"""`embed` over real HTTP: the answers of onnxruntime, options, poolings, prompts and bad input."""

import json
import shutil

import pytest
from function import EMBED, ROOT, running

MODEL = ROOT / "functions" / "embed" / "model"
CASES = json.loads((ROOT / "tests" / "conformance" / "cases" / "embed.json").read_text())["cases"]
LONG = "An uneven film that never quite decides what it wants to be. " * 80


@pytest.fixture(scope="module")
def embed():
    """A ready `embed` with nothing set."""
    with running(binary=EMBED) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="module")
def exact():
    with running(binary=EMBED, PRECISION="f32") as function:
        function.wait_until_healthy()
        yield function


def vectors(function, **body) -> list[list[float]]:
    answer = function.post("/embed", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_embeddings_are_those_of_onnxruntime(exact):
    for case in CASES:
        answer = exact.post("/embed", inputs=case["text"])
        (vector,) = answer.json()
        # Sums of f32 in another order.
        assert vector == pytest.approx(case["embedding"], abs=1e-4), case["text"]
        assert answer.headers["x-compute-tokens"] == str(case["num_tokens"])


def test_the_default_precision_keeps_the_direction(embed):
    texts = [case["text"] for case in CASES]
    for start in range(0, len(texts), 32):
        chosen = CASES[start : start + 32]
        for vector, case in zip(
            vectors(embed, inputs=texts[start : start + 32]), chosen, strict=True
        ):
            assert dot(vector, case["embedding"]) > 0.999, case["text"]


def test_a_text_has_the_same_embedding_alone_and_in_a_batch(embed):
    texts = [case["text"] for case in CASES[:16]]
    together = vectors(embed, inputs=texts)
    assert together == [vectors(embed, inputs=text)[0] for text in texts]


def test_similar_texts_are_close(embed):
    reset, forgot, weather = vectors(
        embed,
        inputs=[
            "How do I reset my password?",
            "I forgot my login credentials.",
            "Today is a sunny day.",
        ],
    )
    assert dot(reset, forgot) > 0.5 > dot(reset, weather)


def test_options_shape_the_vector(embed):
    (whole,) = vectors(embed, inputs="hello")
    assert len(whole) == 384 and dot(whole, whole) == pytest.approx(1, abs=1e-5)
    (raw,) = vectors(embed, inputs="hello", normalize=False)
    length = dot(raw, raw) ** 0.5
    assert length > 1.1
    assert [value / length for value in raw] == pytest.approx(whole, abs=1e-6)
    (short,) = vectors(embed, inputs="hello", dimensions=64)
    assert len(short) == 64 and dot(short, short) == pytest.approx(1, abs=1e-5)
    (first,) = vectors(embed, inputs="hello", dimensions=64, normalize=False)
    assert first == raw[:64]


def test_truncation_at_the_models_own_length_is_reported(embed):
    answer = embed.post("/embed", inputs=["short", LONG])
    assert answer.headers["x-truncated"] == "true"
    # [CLS] short [SEP], and the 256 of sentence_bert_config.json.
    assert answer.headers["x-compute-tokens"] == str(3 + 256)
    assert "x-truncated" not in embed.post("/embed", inputs="short").headers


BAD = [
    ("nothing", {}, 422, "missing_field", "inputs", None),
    ("null", {"inputs": None}, 422, "invalid_field", "inputs", None),
    ("a number", {"inputs": 5}, 422, "invalid_field", "inputs", None),
    ("token ids", {"inputs": [1, 2]}, 422, "invalid_field", "inputs[0]", None),
    ("no texts", {"inputs": []}, 400, "empty", "inputs", None),
    ("an empty text", {"inputs": ""}, 400, "empty", "inputs", None),
    ("one empty text", {"inputs": ["a", " "]}, 400, "empty", "inputs[1]", None),
    ("one long text", {"inputs": ["a", "b", "c" * 5001]}, 413, "too_long", "inputs[2]", 5000),
    ("too many", {"inputs": ["a"] * 33}, 413, "too_many", "inputs", 32),
    ("no dimensions", {"inputs": "a", "dimensions": 0}, 413, "out_of_range", "dimensions", 1),
    ("385 dimensions", {"inputs": "a", "dimensions": 385}, 413, "out_of_range", "dimensions", 384),
    ("no prompts", {"inputs": "a", "prompt_name": "q"}, 422, "unknown_prompt", "prompt_name", None),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "limit"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_a_bad_body_names_field_and_limit(embed, body, status, code, field, limit):
    answer = embed.post("/embed", **body)
    error = answer.json()
    assert (answer.status_code, error["code"]) == (status, code), error
    assert (error["field"], error.get("limit")) == (field, limit)
    assert error["error"].startswith(f"{field}: ")
    assert error["error_type"] == ("Empty" if code == "empty" else "Validation")


def test_a_text_over_the_limit_is_named_when_truncation_is_off():
    with running(binary=EMBED, TRUNCATION="off", MAX_INPUT_TOKENS=8) as function:
        function.wait_until_healthy()
        error = function.post("/embed", inputs=["short", LONG]).json()
        assert (error["code"], error["field"], error["limit"]) == ("too_long", "inputs[1]", 8)


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model that a test may change."""
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("export"))
    return tmp_path / "model"


def test_pooling_is_the_models_unless_it_is_set(model):
    settings = {"MODEL_URI": model, "PRECISION": "f32", "CACHE_DIR": model.parent / "cache"}

    def embedded(**more) -> list[float]:
        with running(binary=EMBED, **settings, **more) as function:
            function.wait_until_healthy()
            return vectors(function, inputs="a good film")[0]

    poolings = {pooling: embedded(POOLING=pooling) for pooling in ("mean", "cls", "last", "max")}
    assert len({tuple(vector) for vector in poolings.values()}) == 4
    assert embedded() == poolings["mean"]
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert embedded() == poolings["cls"]
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with running(binary=EMBED, **settings) as function:
        error = function.wait_for_log("no model")["exception"]
        assert "expected mean, cls, last or max" in error


def test_prompts_are_put_before_texts(model):
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with running(binary=EMBED, MODEL_URI=model) as function:
        function.wait_until_healthy()
        plain = vectors(function, inputs="a film", prompt_name="none")
        prompted = vectors(function, inputs="a film", prompt_name="query")
        assert vectors(function, inputs="query: a film", prompt_name="none") == prompted
        assert vectors(function, inputs="a film") == prompted != plain
