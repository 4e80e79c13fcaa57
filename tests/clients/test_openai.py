"""The `openai` package against `embed`."""

import asyncio
import base64
import concurrent.futures
import threading
import time

import numpy as np
import openai
import pytest
from function import EMBED, running

TEXTS = ["How do I reset my password?", "I forgot my login.", "Today is a sunny day."]


def client(function, **options) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{function.url}/v1", api_key="none", **{"max_retries": 0, **options}
    )


def vectors(answer) -> np.ndarray:
    return np.array([each.embedding for each in answer.data])


def test_embeddings_are_those_of_the_native_route_in_their_order(embed, model_name):
    answer = client(embed).embeddings.create(model=model_name(embed), input=TEXTS)
    assert answer.object == "list" and answer.model == model_name(embed)
    assert [each.index for each in answer.data] == [0, 1, 2]
    native = embed.post("/embed", inputs=TEXTS).json()
    # It asks for base64 unless it is told otherwise; both write the same f32.
    np.testing.assert_allclose(vectors(answer), native, atol=1e-6)
    single = client(embed).embeddings.create(model="any", input=TEXTS[2])
    np.testing.assert_array_equal(vectors(single)[0], vectors(answer)[2])


def test_base64_and_float_hold_the_same_numbers(embed):
    create = client(embed).embeddings.create
    encoded = create(model="any", input=TEXTS, encoding_format="base64")
    floats = create(model="any", input=TEXTS, encoding_format="float")
    decoded = [np.frombuffer(base64.b64decode(each.embedding), "<f4") for each in encoded.data]
    np.testing.assert_array_equal(decoded, vectors(floats).astype(np.float32))


def test_usage_counts_the_tokens_of_the_tokenizer(embed, cases):
    chosen = cases["embed"][:8]
    raw = client(embed).embeddings.with_raw_response.create(
        model="any", input=[case["text"] for case in chosen]
    )
    usage = raw.parse().usage
    assert usage.prompt_tokens == usage.total_tokens == sum(case["num_tokens"] for case in chosen)
    assert raw.headers["x-compute-tokens"] == str(usage.prompt_tokens)


def test_dimensions_cut_the_vector_and_keep_it_a_unit(embed):
    create = client(embed).embeddings.create
    whole = vectors(create(model="any", input=TEXTS))
    short = vectors(create(model="any", input=TEXTS, dimensions=64))
    assert short.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    cut = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(short, cut, atol=1e-5)
    assert short[0] @ short[1] > short[0] @ short[2]


def test_the_async_client_gets_the_same(embed):
    async def create():
        options = {"base_url": f"{embed.url}/v1", "api_key": "none"}
        async with openai.AsyncOpenAI(**options) as asking:
            calls = [asking.embeddings.create(model="any", input=text) for text in TEXTS]
            return await asyncio.gather(*calls)

    answers = asyncio.run(create())
    one_by_one = [client(embed).embeddings.create(model="any", input=text) for text in TEXTS]
    for answer, expected in zip(answers, one_by_one, strict=True):
        np.testing.assert_array_equal(vectors(answer), vectors(expected))


def test_models_are_listed_and_found(embed, model_name):
    (model,) = client(embed).models.list().data
    assert (model.id, model.object, model.owned_by) == (model_name(embed), "model", "sanderling")
    assert client(embed).models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client(embed).models.retrieve("gpt-4")


BAD = {
    "an empty text": ({"input": ""}, "empty", "input"),
    "one empty text": ({"input": ["a", " "]}, "empty", "input[1]"),
    "a long text": ({"input": ["a", "b" * 2001]}, "too_long", "input[1]"),
    "too many texts": ({"input": ["a"] * 33}, "too_many", "input"),
    "too many dimensions": ({"input": "a", "dimensions": 385}, "out_of_range", "dimensions"),
}


@pytest.mark.parametrize(("body", "code", "param"), BAD.values(), ids=BAD)
def test_bad_input_is_a_bad_request_that_names_the_field(embed, body, code, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client(embed).embeddings.create(model="any", **body)
    error = caught.value
    assert (error.type, error.code, error.param) == ("invalid_request_error", code, param)
    assert param in error.body["message"]
    assert error.request_id == error.response.headers["x-request-id"]


def test_an_overloaded_server_is_an_error_without_retries(busy_embed):
    function, _ = busy_embed
    with pytest.raises(openai.InternalServerError) as caught:
        client(function).embeddings.create(model="any", input="a")
    assert (caught.value.status_code, caught.value.type) == (503, "server_error")
    assert caught.value.response.headers["retry-after-ms"] == "1000"


def test_an_overloaded_server_is_asked_again_when_it_said(busy_embed):
    function, end_other = busy_embed
    threading.Timer(0.2, end_other).start()
    started = time.monotonic()
    create = client(function, max_retries=2).embeddings.with_raw_response.create
    answer = create(model="any", input="a")
    assert answer.retries_taken == 1 and len(answer.parse().data) == 1
    # Half as long if it did not read retry-after-ms.
    assert time.monotonic() - started >= 1


def test_a_full_queue_is_a_rate_limit_and_passes():
    # One request fills the queue, and is answered text by text.
    texts = ["An uneven film that never quite decides what it wants to be. " * 80] * 32
    settings = {"MAX_QUEUE_REQUESTS": 32, "MAX_BATCH_REQUESTS": 1, "NUM_THREADS": 1}
    with (
        running(binary=EMBED, **settings) as function,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        function.wait_until_healthy()

        def ask(max_retries: int) -> list[concurrent.futures.Future]:
            create = client(function, max_retries=max_retries).embeddings.with_raw_response.create
            return [pool.submit(create, model="any", input=texts) for _ in range(3)]

        refused = [call.exception() for call in ask(0) if call.exception()]
        assert refused and all(isinstance(error, openai.RateLimitError) for error in refused)
        assert refused[0].type == "rate_limit_error"
        assert refused[0].response.headers["retry-after-ms"] == "1000"
        # Each retry comes a second later: enough of them for a slow machine.
        answers = [call.result() for call in ask(100)]
        assert any(answer.retries_taken for answer in answers)
        assert all(vectors(answer.parse()).shape == (32, 384) for answer in answers)
