"""`tritonclient` over HTTP: the Open Inference Protocol, with tensors as JSON and as bytes."""

import asyncio
import time

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

TEXTS = ["This movie is amazing!", "A dull, lifeless waste.", "Le train part à midi."]


def client(function) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{function.port}")


def tensor(name: str, texts: list[str], binary=True, shape=None) -> triton.InferInput:
    values = np.array([text.encode() for text in texts], dtype=object)
    values = values.reshape(shape or [len(texts)])
    given = triton.InferInput(name, list(values.shape), "BYTES")
    return given.set_data_from_numpy(values, binary_data=binary)


def outputs(*names: str, binary: bool) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def test_server_and_model_are_live_and_ready_under_both_names(predict, model_name):
    with client(predict) as asking:
        assert asking.is_server_live() and asking.is_server_ready()
        for name in ("predict", model_name(predict)):
            assert asking.is_model_ready(name)
        assert not asking.is_model_ready("resnet")


def test_metadata_says_what_goes_in_and_what_comes_out(predict, embed, rerank):
    server = client(predict).get_server_metadata()
    assert server["name"] == "sanderling" and "binary_tensor_data" in server["extensions"]
    expected = {
        "predict": (predict, {"text"}, {"labels": "BYTES", "scores": "FP32"}),
        "embed": (embed, {"text"}, {"embeddings": "FP32"}),
        "rerank": (rerank, {"query", "texts"}, {"scores": "FP32"}),
    }
    for name, (function, names, datatypes) in expected.items():
        model = client(function).get_model_metadata(name)
        assert {each["name"] for each in model["inputs"]} == names
        assert {each["datatype"] for each in model["inputs"]} == {"BYTES"}
        assert {each["name"]: each["datatype"] for each in model["outputs"]} == datatypes
        for version in model["versions"]:
            assert client(function).is_model_ready(name, version)


def test_json_and_bytes_give_the_same_tensors_either_way(predict):
    answers = [
        client(predict).infer(
            "predict",
            [tensor("text", TEXTS, binary=given)],
            outputs=outputs("labels", "scores", binary=asked),
        )
        for given in (True, False)
        for asked in (True, False)
    ]
    # If it names no outputs, it asks for all of them as bytes.
    answers.append(client(predict).infer("predict", [tensor("text", TEXTS)]))
    labels, scores = answers[0].as_numpy("labels"), answers[0].as_numpy("scores")
    assert labels.shape == scores.shape == (3, 2) and scores.dtype == np.float32
    for answer in answers[1:]:
        assert answer.as_numpy("labels").astype(bytes).tolist() == labels.astype(bytes).tolist()
        np.testing.assert_array_equal(answer.as_numpy("scores"), scores)


def test_labels_are_those_of_the_native_route_best_first(predict):
    answer = client(predict).infer("predict", [tensor("text", TEXTS)], request_id="7")
    assert answer.get_response()["id"] == "7"
    labels, scores = answer.as_numpy("labels").astype(bytes), answer.as_numpy("scores")
    for row, text in enumerate(TEXTS):
        native = predict.predict(text=text, top_k=2).json()
        assert [label.decode() for label in labels[row]] == [each["label"] for each in native]
        np.testing.assert_allclose(scores[row], [each["score"] for each in native], atol=1e-6)
    one = client(predict).infer("predict", [tensor("text", TEXTS)], parameters={"top_k": 1})
    assert one.as_numpy("labels").astype(bytes).tolist() == labels[:, :1].tolist()


def test_one_output_comes_alone_if_it_is_asked_for_alone(predict):
    answer = client(predict).infer(
        "predict", [tensor("text", TEXTS)], outputs=outputs("scores", binary=True)
    )
    assert answer.as_numpy("scores").shape == (3, 2) and answer.as_numpy("labels") is None


def test_a_column_of_texts_is_a_batch_and_any_version_will_do(embed):
    row = client(embed).infer("embed", [tensor("text", TEXTS)]).as_numpy("embeddings")
    np.testing.assert_allclose(row, embed.post("/embed", inputs=TEXTS).json(), atol=1e-6)
    version = client(embed).get_model_metadata("embed")["versions"][0]
    column = [tensor("text", TEXTS, shape=[3, 1])]
    answer = client(embed).infer("embed", column, model_version=version)
    np.testing.assert_array_equal(answer.as_numpy("embeddings"), row)


def test_parameters_are_the_fields_of_the_native_route(embed):
    parameters = {"dimensions": 64, "normalize": False}
    answer = client(embed).infer("embed", [tensor("text", TEXTS)], parameters=parameters)
    native = embed.post("/embed", inputs=TEXTS, **parameters).json()
    np.testing.assert_allclose(answer.as_numpy("embeddings"), native, atol=1e-6)


def test_scores_of_rerank_are_in_the_order_of_the_texts(rerank, cases):
    for case in cases["rerank"]:
        texts = [text["text"] for text in case["texts"]]
        given = [tensor("query", [case["query"]]), tensor("texts", texts)]
        raw = client(rerank).infer("rerank", given, parameters={"raw_scores": True})
        logits = [text["logit"] for text in case["texts"]]
        # Sums of f32 in another order.
        np.testing.assert_allclose(raw.as_numpy("scores"), logits, atol=1e-4)


def test_the_async_client_gets_the_same(embed):
    async def infer():
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{embed.port}") as asking:
            return await asking.infer("embed", [tensor("text", TEXTS)])

    expected = client(embed).infer("embed", [tensor("text", TEXTS)])
    answer = asyncio.run(infer())
    np.testing.assert_array_equal(answer.as_numpy("embeddings"), expected.as_numpy("embeddings"))


def test_a_model_that_is_not_here_is_its_own_error(embed):
    for call in (
        lambda: client(embed).get_model_metadata("resnet"),
        lambda: client(embed).infer("resnet", [tensor("text", TEXTS)]),
    ):
        with pytest.raises(InferenceServerException, match="resnet") as caught:
            call()
        assert caught.value.status() == "404"


@pytest.mark.parametrize("text", ["", "a" * 2001], ids=["empty", "too long"])
def test_bad_input_is_its_own_error_with_our_words(embed, text):
    with pytest.raises(InferenceServerException, match="text") as caught:
        client(embed).infer("embed", [tensor("text", ["a", text])])
    assert caught.value.status() == "400"


def test_an_overloaded_server_is_ready_again_when_the_other_has_left(busy_embed):
    function, end_other = busy_embed
    with pytest.raises(InferenceServerException) as caught:
        client(function).infer("embed", [tensor("text", TEXTS)])
    assert caught.value.status() == "503"
    end_other()
    time.sleep(1)
    assert client(function).infer("embed", [tensor("text", TEXTS)]).as_numpy("embeddings").any()
