"""vLLM's classify route, by the `openai` package: vLLM has no client of its own for it."""

import openai
import pytest

TEXTS = ["This movie is amazing!", "A dull, lifeless waste of two hours."]


def classify(function, **body) -> dict:
    client = openai.OpenAI(base_url=f"{function.url}/v1", api_key="none", max_retries=0)
    return client.post("/classify", body=body, cast_to=object)


def test_labels_and_probabilities_are_those_of_the_native_route(predict):
    answer = classify(predict, model="any", input=TEXTS)
    assert answer["object"] == "list" and answer["id"].startswith("classify-")
    assert [each["index"] for each in answer["data"]] == [0, 1]
    for each, text in zip(answer["data"], TEXTS, strict=True):
        best, other = predict.predict(text=text, top_k=2).json()
        assert each["label"] == best["label"] and each["num_classes"] == 2
        assert sorted(each["probs"], reverse=True) == pytest.approx(
            [best["score"], other["score"]], abs=1e-6
        )


def test_usage_counts_the_tokens_of_the_tokenizer(predict, cases):
    chosen = cases["predict"][:8]
    usage = classify(predict, model="any", input=[case["text"] for case in chosen])["usage"]
    assert usage["prompt_tokens"] == sum(case["num_tokens"] for case in chosen)


@pytest.mark.parametrize("text", ["", "a" * 2001], ids=["empty", "too long"])
def test_bad_input_is_a_bad_request(predict, text):
    with pytest.raises(openai.BadRequestError) as caught:
        classify(predict, model="any", input=text)
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", "input")


def test_an_overloaded_server_is_an_error_without_retries(busy_predict):
    function, _ = busy_predict
    with pytest.raises(openai.InternalServerError) as caught:
        classify(function, model="any", input="a")
    assert (caught.value.status_code, caught.value.type) == (503, "server_error")
