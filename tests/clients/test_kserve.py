"""KServe's inference client, in both of its protocols."""

import asyncio
import time

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TEXTS = ["This movie is amazing!", "A dull, lifeless waste.", "Le train part à midi."]


def ask(function, protocol: str, method: str, **arguments):
    """The result of one call of the client, which is asynchronous."""

    async def call():
        client = InferenceRESTClient(RESTConfig(protocol=protocol))
        try:
            return await getattr(client, method)(function.url, **arguments)
        finally:
            await client.close()

    return asyncio.run(call())


def predictions(function, instances: list, name: str) -> list:
    data = {"instances": instances}
    return ask(function, "v1", "infer", data=data, model_name=name)["predictions"]


def tensor(name: str, texts: list[str], binary=False) -> InferInput:
    given = InferInput(name, [len(texts)], "BYTES")
    values = np.array([text.encode() for text in texts], dtype=object)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def infer(function, name: str, *inputs: InferInput, **options) -> dict[str, np.ndarray]:
    """Outputs by name."""
    request = InferRequest(name, list(inputs), **options)
    answer = ask(function, "v2", "infer", data=request, model_name=name)
    assert answer.id == request.id or not request.id
    return {output.name: output.as_numpy() for output in answer.outputs}


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_server_and_model_are_live_and_ready(predict, model_name, protocol):
    assert ask(predict, protocol, "is_server_live")
    for name in ("predict", model_name(predict)):
        assert ask(predict, protocol, "is_model_ready", model_name=name)
    assert protocol == "v1" or ask(predict, protocol, "is_server_ready")


def test_a_model_that_is_not_here_is_not_ready_and_infers_nothing(predict):
    assert not ask(predict, "v2", "is_model_ready", model_name="resnet")
    for call in (
        lambda: ask(predict, "v1", "is_model_ready", model_name="resnet"),
        lambda: predictions(predict, TEXTS, "resnet"),
        lambda: infer(predict, "resnet", tensor("text", TEXTS)),
    ):
        with pytest.raises(httpx.HTTPStatusError, match="resnet") as caught:
            call()
        assert caught.value.response.status_code == 404


def test_predictions_are_the_labels_of_the_native_route(predict, model_name):
    native = [predict.predict(text=text).json()[0] for text in TEXTS]
    for name in ("predict", model_name(predict)):
        assert predictions(predict, TEXTS, name) == native
    assert predictions(predict, [{"text": text} for text in TEXTS], "predict") == native


def test_predictions_of_embed_are_embeddings(embed):
    native = embed.post("/embed", inputs=TEXTS).json()
    assert predictions(embed, TEXTS, "embed") == native


def test_predictions_of_rerank_are_scores_in_the_order_of_the_texts(rerank, cases):
    for case in cases["rerank"]:
        texts = [text["text"] for text in case["texts"]]
        ranked = rerank.post("/rerank", query=case["query"], texts=texts).json()
        scores = {each["index"]: each["score"] for each in ranked}
        instances = [{"query": case["query"], "text": text} for text in texts]
        expected = [scores[index] for index in range(len(texts))]
        assert predictions(rerank, instances, "rerank") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_tensors_hold_what_the_native_route_gives(predict, binary):
    outputs = infer(predict, "predict", tensor("text", TEXTS, binary), request_id="7")
    for row, text in enumerate(TEXTS):
        native = predict.predict(text=text, top_k=2).json()
        labels = [
            label if isinstance(label, str) else label.decode() for label in outputs["labels"][row]
        ]
        assert labels == [each["label"] for each in native]
        scores = [each["score"] for each in native]
        np.testing.assert_allclose(outputs["scores"][row], scores, atol=1e-6)


def test_tensors_come_as_bytes_if_they_are_asked_for_so(embed):
    asked = [RequestedOutput("embeddings", {"binary_data": True})]
    outputs = infer(embed, "embed", tensor("text", TEXTS, True), request_outputs=asked)
    native = embed.post("/embed", inputs=TEXTS).json()
    np.testing.assert_allclose(outputs["embeddings"], native, atol=1e-6)


def test_tensors_of_rerank_are_scores_in_the_order_of_the_texts(rerank, cases):
    case = cases["rerank"][0]
    texts = tensor("texts", [text["text"] for text in case["texts"]])
    options = {"parameters": {"raw_scores": True}}
    outputs = infer(rerank, "rerank", tensor("query", [case["query"]]), texts, **options)
    logits = [text["logit"] for text in case["texts"]]
    # Sums of f32 in another order.
    np.testing.assert_allclose(outputs["scores"], logits, atol=1e-4)


@pytest.mark.parametrize("text", ["", "a" * 2001], ids=["empty", "too long"])
def test_bad_input_is_a_status_error_with_our_words(embed, text):
    with pytest.raises(httpx.HTTPStatusError, match=r"instances.*400 Bad Request"):
        predictions(embed, ["a", text], "embed")
    with pytest.raises(httpx.HTTPStatusError, match=r"text.*400 Bad Request"):
        infer(embed, "embed", tensor("text", ["a", text]))


def test_an_overloaded_server_answers_when_the_other_has_left(busy_embed):
    function, end_other = busy_embed
    for call in (
        lambda: predictions(function, ["a"], "embed"),
        lambda: infer(function, "embed", tensor("text", ["a"])),
    ):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            call()
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
    end_other()
    time.sleep(1)
    assert len(predictions(function, ["a"], "embed")[0]) == 384
