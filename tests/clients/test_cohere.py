"""Cohere's clients of both versions against `rerank`."""

import asyncio
import threading
import time

import cohere
import pytest

QUERY = "What is the capital of France?"
DOCUMENTS = ["Paris is the capital.", "the river", "Bread is baked at night.", "paris"]


def client(function, version=2, **options) -> cohere.Client | cohere.ClientV2:
    options = {"max_retries": 0, **options}
    made = cohere.ClientV2 if version == 2 else cohere.Client
    return made("none", base_url=function.url, **options)


def native(function, documents=DOCUMENTS) -> list[tuple[int, float]]:
    ranked = function.post("/rerank", query=QUERY, texts=documents).json()
    return [(each["index"], pytest.approx(each["score"], abs=1e-6)) for each in ranked]


def pairs(answer) -> list[tuple[int, float]]:
    return [(each.index, each.relevance_score) for each in answer.results]


@pytest.mark.parametrize("version", [1, 2])
def test_order_and_scores_are_those_of_the_native_route(rerank, version):
    answer = client(rerank, version).rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert pairs(answer) == native(rerank)
    assert answer.id and answer.meta.api_version.version == str(version)
    assert answer.meta.billed_units.search_units == 1
    another = client(rerank, version).rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert pairs(another) == pairs(answer) and another.id != answer.id


@pytest.mark.parametrize("version", [1, 2])
def test_top_n_is_how_many_come_back(rerank, version):
    rank = client(rerank, version).rerank
    best = rank(model="any", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert pairs(best) == native(rerank)[:2]
    # More than there are is all there are.
    every = rank(model="any", query=QUERY, documents=DOCUMENTS, top_n=10)
    assert pairs(every) == native(rerank)


def test_documents_come_back_if_they_are_asked_for(rerank):
    rank = client(rerank, 1).rerank
    given = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, *DOCUMENTS[2:]]
    answer = rank(model="any", query=QUERY, documents=given, return_documents=True)
    assert pairs(answer) == native(rerank)
    for each in answer.results:
        assert each.document.text == DOCUMENTS[each.index]
    without = rank(model="any", query=QUERY, documents=given, return_documents=False)
    assert all(each.document is None for each in without.results)


def test_a_document_is_cut_at_its_tokens_if_that_is_asked_for(rerank):
    rank = client(rerank).rerank
    long = [DOCUMENTS[0] + " and more" * 50, DOCUMENTS[1]]
    cut = rank(model="any", query=QUERY, documents=long, max_tokens_per_doc=4)
    whole = rank(model="any", query=QUERY, documents=long)
    scores = dict(pairs(cut)), dict(pairs(whole))
    assert scores[0][0] != scores[1][0] and scores[0][1] == pytest.approx(scores[1][1], abs=1e-6)


def test_the_async_client_gets_the_same(rerank):
    async def rank():
        async with cohere.AsyncClientV2("none", base_url=rerank.url) as asking:
            return await asking.rerank(model="any", query=QUERY, documents=DOCUMENTS)

    assert pairs(asyncio.run(rank())) == native(rerank)


BAD = {
    "an empty query": ({"query": " "}, "query"),
    "a long query": ({"query": "a" * 2001}, "query"),
    "no documents": ({"documents": []}, "documents"),
    "an empty document": ({"documents": ["a", ""]}, "documents[1]"),
    "a long document": ({"documents": ["a", "b" * 2001]}, "documents[1]"),
    "too many documents": ({"documents": ["a"] * 33}, "documents"),
    "a top_n of 0": ({"top_n": 0}, "top_n"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("body", "field"), BAD.values(), ids=BAD)
def test_bad_input_is_a_bad_request_that_names_the_field(rerank, version, body, field):
    body = {"model": "any", "query": QUERY, "documents": DOCUMENTS, **body}
    with pytest.raises(cohere.BadRequestError) as caught:
        client(rerank, version).rerank(**body)
    assert field in caught.value.body["message"]


def test_an_overloaded_server_is_unavailable_without_retries(busy_rerank):
    function, _ = busy_rerank
    with pytest.raises(cohere.ServiceUnavailableError) as caught:
        client(function).rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert caught.value.headers["retry-after"] == "1"
    assert caught.value.body["message"]


def test_an_overloaded_server_is_asked_again_when_it_said(busy_rerank):
    function, end_other = busy_rerank
    threading.Timer(0.2, end_other).start()
    started = time.monotonic()
    asking = client(function, max_retries=2)
    answer = asking.rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert pairs(answer) == native(function) and time.monotonic() - started >= 1
