"""CloudEvents of the `cloudevents` package, in both modes of HTTP, and what comes back."""

import json
import time

import httpx
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http

TEXT = "This movie is amazing!"
MODES = {"binary": to_binary, "structured": to_structured}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def event(data, **attributes) -> CloudEvent:
    return CloudEvent({"type": "test.text", "source": "/test", **attributes}, data)


def send(function, mode, given: CloudEvent) -> httpx.Response:
    headers, body = mode(given)
    return httpx.post(function.url, headers=headers, content=body)


def replied(function, mode, given: CloudEvent) -> CloudEvent:
    """The event in the answer, which has the mode of the request."""
    answer = send(function, mode, given)
    assert answer.status_code == 200, answer.text
    is_structured = answer.headers["content-type"].startswith("application/cloudevents+json")
    assert is_structured == (mode is to_structured)
    assert ("ce-id" in answer.headers) == (mode is to_binary)
    return from_http(answer.headers, answer.content)


@modes
def test_predict_replies_with_an_event_of_its_labels(predict, mode):
    given = event({"text": TEXT, "top_k": 2})
    reply = replied(predict, mode, given)
    assert (reply["type"], reply["source"]) == ("sanderling.predict.done", "/predict")
    assert reply["specversion"] == "1.0" and reply["datacontenttype"] == "application/json"
    assert reply.data == predict.predict(text=TEXT, top_k=2).json()


@modes
def test_embed_and_rerank_reply_with_what_their_routes_give(embed, rerank, mode):
    for function, name, body in (
        (embed, "embed", {"inputs": [TEXT, "a"], "dimensions": 64}),
        (rerank, "rerank", {"query": "a", "texts": [TEXT, "a"], "return_text": True}),
    ):
        reply = replied(function, mode, event(body))
        assert (reply["type"], reply["source"]) == (f"sanderling.{name}.done", f"/{name}")
        assert reply.data == function.post(f"/{name}", **body).json()


@modes
def test_every_reply_is_an_event_of_its_own(predict, mode):
    given = event({"text": TEXT})
    replies = [replied(predict, mode, given) for _ in range(2)]
    # Source and id together are unique.
    assert replies[0]["id"] != replies[1]["id"]


@modes
def test_json_is_recognised_by_its_type_or_taken_for_granted(predict, mode):
    native = predict.predict(text=TEXT).json()
    for attributes in ({}, {"datacontenttype": "application/json; charset=utf-8"}):
        assert replied(predict, mode, event({"text": TEXT}, **attributes)).data == native


@modes
def test_plain_text_is_the_text(predict, embed, mode):
    # Bytes: in the structured mode they travel as base64.
    given = event(TEXT.encode(), datacontenttype="text/plain")
    assert replied(predict, mode, given).data == predict.predict(text=TEXT).json()
    assert replied(embed, mode, given).data == embed.post("/embed", inputs=TEXT).json()


def test_plain_text_in_a_structured_event_may_be_a_string(predict):
    given = event(TEXT, datacontenttype="text/plain")
    assert replied(predict, to_structured, given).data == predict.predict(text=TEXT).json()


@modes
def test_other_attributes_and_extensions_do_no_harm(predict, mode):
    given = event(
        {"text": TEXT}, subject="films/1", dataschema="urn:film", partitionkey="7", traceparent="x"
    )
    assert replied(predict, mode, given).data[0]["label"] == "POSITIVE"


BAD = {
    "an empty text": {"text": ""},
    "a long text": {"text": "a" * 2001},
    "no text": {},
    "an unknown field": {"text": "a", "txt": "b"},
}


@modes
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_data_is_400_and_so_is_not_sent_again(predict, mode, data):
    answer = send(predict, mode, event(data))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"] and isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("attribute", ["id", "source", "type", "specversion"])
def test_an_event_without_a_required_attribute_is_400_and_names_it(predict, attribute):
    headers, body = to_binary(event({"text": TEXT}))
    del headers[f"ce-{attribute}"]
    envelope = json.loads(to_structured(event({"text": TEXT}))[1])
    del envelope[attribute]
    structured = {"content-type": "application/cloudevents+json"}
    asked = [(structured, json.dumps(envelope).encode())]
    if attribute != "specversion":
        # Without that header it is no event of the binary mode at all.
        asked.append((headers, body))
    for headers, body in asked:
        answer = httpx.post(predict.url, headers=headers, content=body)
        assert answer.status_code == 400 and attribute in answer.json()["error"]


@modes
def test_an_overloaded_server_is_503_and_so_is_sent_again(busy_predict, mode):
    function, end_other = busy_predict
    answer = send(function, mode, event({"text": TEXT}))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    end_other()
    time.sleep(1)
    assert replied(function, mode, event({"text": TEXT})).data[0]["label"] == "POSITIVE"
