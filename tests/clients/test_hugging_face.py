"""`huggingface_hub.InferenceClient`, which posts to the URL it is given and to nothing under it."""

import time

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

TEXTS = ["This movie is amazing!", "A dull, lifeless waste of two hours."]


def test_the_label_is_that_of_the_native_route(predict):
    for text in TEXTS:
        native = predict.predict(text=text, top_k=2).json()
        labels = InferenceClient(predict.url).text_classification(text)
        assert [each.label for each in labels] == [each["label"] for each in native]
        scores = [each.score for each in labels]
        assert scores == pytest.approx([each["score"] for each in native], abs=1e-6)


def test_top_k_is_how_many_labels_come_back(predict):
    classify = InferenceClient(predict.url).text_classification
    assert [each.label for each in classify(TEXTS[1], top_k=1)] == ["NEGATIVE"]
    assert [each.label for each in classify(TEXTS[1], top_k=2)] == ["NEGATIVE", "POSITIVE"]


def test_the_function_to_apply_is_applied_to_the_logits(predict):
    classify = InferenceClient(predict.url).text_classification

    def scores(function) -> np.ndarray:
        return np.array([each.score for each in classify(TEXTS[0], function_to_apply=function)])

    logits = scores("none")
    assert logits[0] > 1
    np.testing.assert_allclose(scores("sigmoid"), 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(scores("softmax"), np.exp(logits) / np.exp(logits).sum(), atol=1e-5)


def test_features_are_the_embeddings(embed):
    features = InferenceClient(embed.url).feature_extraction(TEXTS)
    assert features.shape == (2, 384)
    np.testing.assert_allclose(features, embed.post("/embed", inputs=TEXTS).json(), atol=1e-6)
    # A single text is a batch of one.
    single = InferenceClient(embed.url).feature_extraction(TEXTS[0])
    np.testing.assert_array_equal(single, features[:1])


def test_its_options_are_those_of_the_native_route(embed):
    extract = InferenceClient(embed.url).feature_extraction
    for options in (
        {"normalize": False},
        {"normalize": True, "dimensions": 64},
        {"truncate": True, "encoding_format": "float"},
    ):
        sent = {name: value for name, value in options.items() if name != "encoding_format"}
        native = embed.post("/embed", inputs=TEXTS[0], **sent).json()
        np.testing.assert_allclose(extract(TEXTS[0], **options), native, atol=1e-6)


def test_its_lower_case_truncation_directions_are_known(embed):
    extract = InferenceClient(embed.url).feature_extraction
    # 256 tokens are read: all of them of the start, or all of the end.
    text = "good " * 254 + "bad " * 100
    right = extract(text, truncate=True, truncation_direction="right")
    np.testing.assert_array_equal(right, extract("good " * 254))
    left = extract(text, truncate=True, truncation_direction="left")
    np.testing.assert_array_equal(left, extract("good " * 154 + "bad " * 100))


def test_similarities_are_the_cosines_of_the_embeddings(embed):
    others = ["I loved this film.", TEXTS[1], "The train leaves at noon."]
    client = InferenceClient(embed.url)
    similarities = client.sentence_similarity(TEXTS[0], other_sentences=others)
    vectors = client.feature_extraction([TEXTS[0], *others])
    np.testing.assert_allclose(similarities, vectors[1:] @ vectors[0], atol=1e-5)
    assert similarities[0] == max(similarities)
    inputs = {"source_sentence": TEXTS[0], "sentences": others}
    native = embed.post("/similarity", inputs=inputs).json()
    assert native == pytest.approx(similarities, abs=1e-6)


@pytest.mark.parametrize("text", ["", " \n", "a" * 2001], ids=["empty", "blank", "too long"])
def test_bad_input_is_a_bad_request_that_names_the_field(predict, embed, text):
    client = InferenceClient(embed.url)
    for call in (
        InferenceClient(predict.url).text_classification,
        client.feature_extraction,
        lambda text: client.sentence_similarity(text, other_sentences=["a"]),
    ):
        with pytest.raises(BadRequestError) as caught:
            call(text)
        # What the server said is part of the exception's text.
        assert "inputs" in str(caught.value) and "inputs" in caught.value.server_message
        request_id = caught.value.response.headers["x-request-id"]
        assert caught.value.request_id == request_id


def test_more_labels_than_there_are_is_a_bad_request(predict):
    with pytest.raises(BadRequestError, match="top_k"):
        InferenceClient(predict.url).text_classification("a", top_k=3)


def test_an_overloaded_server_is_503_and_says_when_to_ask_again(busy_predict):
    function, end_other = busy_predict
    classify = InferenceClient(function.url).text_classification
    with pytest.raises(HfHubHTTPError) as caught:
        classify("a")
    assert caught.value.response.status_code == 503
    end_other()
    time.sleep(float(caught.value.response.headers["retry-after"]))
    assert classify("a")
