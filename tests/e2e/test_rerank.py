"""`rerank` over real HTTP: the scores of transformers, bad input, and no model of its own."""

import json
import math

import httpx
import pytest
from function import RERANK, ROOT, running

CONFORMANCE = ROOT / "tests" / "conformance"
CASES = json.loads((CONFORMANCE / "cases" / "rerank.json").read_text())["cases"]


@pytest.fixture(scope="module")
def rerank():
    with running(binary=RERANK, MODEL_URI=CONFORMANCE / "fixtures" / "reranker") as function:
        function.wait_until_healthy()
        yield function


@pytest.mark.parametrize("case", CASES, ids=[case["query"][:20] for case in CASES])
def test_scores_are_those_of_transformers(rerank, case):
    texts = case["texts"]
    body = {"query": case["query"], "texts": [text["text"] for text in texts]}
    answer = rerank.post("/rerank", **body, raw_scores=True)
    ranked = answer.json()
    order = sorted(range(len(texts)), key=lambda index: -texts[index]["logit"])
    assert [text["index"] for text in ranked] == order
    for text in ranked:
        # Sums of f32 in another order.
        assert text["score"] == pytest.approx(texts[text["index"]]["logit"], abs=1e-4)
    assert answer.headers["x-compute-tokens"] == str(sum(text["num_tokens"] for text in texts))
    is_truncated = any(text["truncated"] for text in texts)
    assert answer.headers.get("x-truncated") == ("true" if is_truncated else None)

    for text in rerank.post("/rerank", **body).json():
        logit = texts[text["index"]]["logit"]
        assert text["score"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)


def test_texts_come_back_if_asked_for(rerank):
    texts = ["Paris is the capital.", "the river", "paris"]
    ranked = rerank.post("/rerank", query="who", texts=texts, return_text=True).json()
    assert all(text["text"] == texts[text["index"]] for text in ranked)
    assert "text" not in rerank.post("/rerank", query="who", texts=texts).json()[0]


BAD = [
    ("no query", {"texts": ["a"]}, 422, "missing_field", "query", None),
    ("an empty query", {"query": " ", "texts": ["a"]}, 400, "empty", "query", None),
    ("no texts", {"query": "a"}, 422, "missing_field", "texts", None),
    ("an empty array", {"query": "a", "texts": []}, 400, "empty", "texts", None),
    ("an empty text", {"query": "a", "texts": ["b", ""]}, 400, "empty", "texts[1]", None),
    ("a number", {"query": "a", "texts": ["b", 5]}, 422, "invalid_field", "texts[1]", None),
    ("too many", {"query": "a", "texts": ["b"] * 33}, 413, "too_many", "texts", 32),
    ("a long query", {"query": "a" * 5001, "texts": ["b"]}, 413, "too_long", "query", 5000),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "limit"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_a_bad_body_names_field_and_limit(rerank, body, status, code, field, limit):
    answer = rerank.post("/rerank", **body)
    error = answer.json()
    assert (answer.status_code, error["code"]) == (status, code), error
    assert (error["field"], error.get("limit")) == (field, limit)


def test_without_a_model_it_starts_and_says_what_is_missing():
    with running(binary=RERANK) as function:
        function.wait_for_log("no model")
        health = httpx.get(f"{function.url}/health")
        assert health.status_code == 503
        assert "functions/rerank/model" in health.json()["reason"]
        answer = function.post("/rerank", query="a", texts=["b"])
        assert answer.status_code == 503
        assert answer.json()["code"] == "model_unavailable"
        assert function.terminate() == 0


def test_a_model_that_is_no_reranker_is_refused():
    with running(binary=RERANK, MODEL_URI=ROOT / "functions" / "predict" / "model") as function:
        error = function.wait_for_log("no model")["exception"]
        assert "a reranker gives one logit, the graph gives 2" in error
