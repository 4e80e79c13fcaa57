"""`predict` over real HTTP: answers, protocols, and every kind of bad input."""

import json
import socket

import httpx
import pytest

AMAZING = "This movie is amazing!"


def test_the_readmes_sentence_is_positive(predict):
    response = predict.predict(text=AMAZING, top_k=2)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    best, other = response.json()
    assert best["label"] == "POSITIVE" and best["score"] > 0.95
    assert other["label"] == "NEGATIVE"
    assert best["score"] + other["score"] == pytest.approx(1, abs=1e-6)


def test_one_label_is_the_default(predict):
    response = predict.predict(text="A dull, lifeless waste of two hours.")
    assert [label["label"] for label in response.json()] == ["NEGATIVE"]


def test_health_names_model_and_version(predict):
    health = httpx.get(f"{predict.url}/health").json()
    assert health["status"] == "healthy"
    assert health["model"] == "minilm-l6-h384-sst2"
    assert len(health["version"]) == 12


def test_h2c_answers_like_http_1_1(predict):
    with httpx.Client(http1=False, http2=True) as client:
        response = client.post(f"{predict.url}/predict", json={"text": AMAZING})
        assert response.http_version == "HTTP/2"
        assert response.json() == predict.predict(text=AMAZING).json()
        assert client.get(f"{predict.url}/health").status_code == 200


def test_a_request_id_is_kept_or_given(predict):
    health = f"{predict.url}/health"
    assert httpx.get(health, headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    given = [httpx.get(health).headers["x-request-id"] for _ in range(2)]
    assert given[0] != given[1]
    too_long = httpx.get(health, headers={"x-request-id": "a" * 200})
    assert too_long.headers["x-request-id"] != "a" * 200


def test_a_long_text_is_truncated_and_says_so(predict):
    response = predict.predict(text="good " * 900)
    assert response.status_code == 200
    assert response.headers["x-truncated"] == "true"
    assert response.headers["x-compute-tokens"] == "512"
    assert "x-truncated" not in predict.predict(text=AMAZING).headers


BAD_BODIES = [
    ("not json", b"text=hello", 400, "invalid_json", None, None),
    ("cut short", b'{"text": "he', 400, "invalid_json", None, None),
    ("two values", b'{"text": "a"} {"text": "b"}', 400, "invalid_json", None, None),
    ("nothing", b"", 400, "invalid_json", None, None),
    ("invalid utf-8", b'{"text": "\xff\xfe"}', 400, "invalid_utf8", None, None),
    ("lone surrogate", rb'{"text": "\ud800"}', 400, "invalid_json", None, None),
    ("text twice", b'{"text": "a", "text": "b"}', 422, "invalid_body", None, None),
    ("not an object", b'"text"', 422, "invalid_body", None, None),
    ("an array", b'["text", 1]', 422, "invalid_body", None, None),
    ("deeply nested", b'{"text":' + b"[" * 100_000, 422, "invalid_field", "text", None),
    ("missing text", b"{}", 422, "missing_field", "text", None),
    ("null text", b'{"text": null}', 422, "invalid_field", "text", None),
    ("empty text", b'{"text": ""}', 422, "empty", "text", None),
    ("blank text", b'{"text": " \\n\\t "}', 422, "empty", "text", None),
    ("text is a number", b'{"text": 5}', 422, "invalid_field", "text", None),
    ("unknown field", b'{"text": "a", "topk": 2}', 422, "invalid_field", "topk", None),
    ("top_k 0", b'{"text": "a", "top_k": 0}', 422, "out_of_range", "top_k", 1),
    ("top_k 3", b'{"text": "a", "top_k": 3}', 422, "out_of_range", "top_k", 2),
    ("top_k -1", b'{"text": "a", "top_k": -1}', 422, "invalid_field", "top_k", None),
    ("top_k 1.5", b'{"text": "a", "top_k": 1.5}', 422, "invalid_field", "top_k", None),
    (
        "too long",
        json.dumps({"text": "é" * 5001}).encode(),
        422,
        "too_long",
        "text",
        5000,
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "limit"),
    [case[1:] for case in BAD_BODIES],
    ids=[case[0] for case in BAD_BODIES],
)
def test_a_bad_body_names_field_and_limit(predict, body, status, code, field, limit):
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{predict.url}/predict", content=body, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error.get("field") == field
    assert error.get("limit") == limit
    assert field is None or field in error["message"]


def test_the_longest_allowed_text_is_answered(predict):
    assert predict.predict(text="é" * 5000).status_code == 200


def test_a_body_over_the_limit_is_refused_declared_or_not(predict):
    def chunks():
        for _ in range(40):
            yield b" " * 100_000

    for content in (b" " * 2_000_001, chunks()):
        response = httpx.post(
            f"{predict.url}/predict",
            content=content,
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 413
        assert response.json()["error"]["limit"] == 2_000_000


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_content_types_are_refused(predict, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = httpx.post(f"{predict.url}/predict", content=b'{"text": "a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_recognised_however_it_is_written(predict, content_type):
    headers = {"content-type": content_type}
    response = httpx.post(f"{predict.url}/predict", content=b'{"text": "a"}', headers=headers)
    assert response.status_code == 200


def test_a_wrong_method_or_path_is_told_so(predict):
    wrong_method = httpx.get(f"{predict.url}/predict")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"
    assert wrong_method.json()["error"]["code"] == "method_not_allowed"
    wrong_path = httpx.post(f"{predict.url}/predictt", json={})
    assert wrong_path.status_code == 404
    assert wrong_path.json()["error"]["code"] == "not_found"
    not_text = httpx.get(f"{predict.url}/v2/models/%ff")
    assert not_text.status_code == 400
    assert not_text.json() == {"error": "the path has to be UTF-8"}


def test_a_caller_that_hangs_up_mid_body_harms_nobody(predict):
    with socket.create_connection(("127.0.0.1", predict.port)) as caller:
        caller.sendall(
            b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"text"'
        )
    assert predict.predict(text=AMAZING).status_code == 200
