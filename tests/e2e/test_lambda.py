"""The same binary on Lambda: under the real `cargo lambda watch`, and on the wire format itself."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import httpx
import pytest
from collector import over_http
from function import PREDICT, ROOT, environment, run_to_end
from runtime_api import http_event, runtime_api

AMAZING = {"text": "This movie is amazing!", "top_k": 2}

# `watch` may have to link the function first.
WATCH_SECS = 600


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def collector():
    with over_http() as collector:
        yield collector


@pytest.fixture(scope="module")
def watch(tmp_path_factory, collector):
    """The port of the README's `cargo lambda watch`, with `predict` answering behind it."""
    port = free_port()
    log = tmp_path_factory.mktemp("watch") / "log"
    command = [
        "cargo",
        "lambda",
        "watch",
        "--release",
        "--package",
        "predict",
        "--ignore-changes",
    ]
    address = ["--invoke-address", "127.0.0.1", "--invoke-port", str(port)]
    environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *address], cwd=ROOT, env=environ, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + WATCH_SECS
            while True:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    url = f"http://127.0.0.1:{port}/lambda-url/predict/health"
                    if httpx.get(url, timeout=60).status_code == 200:
                        break
                time.sleep(0.2)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def test_a_function_url_answers(watch):
    url = f"http://127.0.0.1:{watch}/lambda-url/predict/predict"
    response = httpx.post(url, json=AMAZING, timeout=60)
    assert response.status_code == 200
    assert response.json()[0]["label"] == "POSITIVE" and response.json()[0]["score"] > 0.95
    assert response.headers["x-compute-tokens"] == "7"
    bad = httpx.post(url, json={"text": ""}, timeout=60)
    assert bad.status_code == 422 and bad.json()["error"]["field"] == "text"


def test_a_function_url_is_traced(watch, collector):
    url = f"http://127.0.0.1:{watch}/lambda-url/predict/predict"
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    assert httpx.post(url, json=AMAZING, headers=headers, timeout=60).status_code == 200
    [span] = [span for span in collector.spans if span.parent_span_id.hex() == parent_id]
    assert (span.name, span.trace_id.hex()) == ("predict", trace_id)
    assert collector.children(span).keys() >= {"tokenization", "model_inference"}


def test_cargo_lambda_invoke_answers(watch, tmp_path):
    event = tmp_path / "event.json"
    event.write_text(json.dumps(http_event("POST", "/predict", AMAZING)))
    command = ["cargo", "lambda", "invoke", "predict", "--data-file", event]
    address = ["--invoke-address", "127.0.0.1", "--invoke-port", str(watch)]
    answer = json.loads(subprocess.check_output([*command, *address], cwd=ROOT))
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])[0]["label"] == "POSITIVE"


@pytest.fixture
def on_lambda():
    """`predict` behind a Runtime API of the test's own."""
    with behind_runtime_api() as api:
        yield api


@contextlib.contextmanager
def behind_runtime_api(output=None, **settings):
    """The Runtime API before `predict`, which SIGTERM must end with 0 and whose log goes to `output`."""
    with runtime_api() as api:
        settings |= {
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_FUNCTION_NAME": "predict",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        }
        environ = environment(**settings)
        process = subprocess.Popen([PREDICT], cwd=ROOT, env=environ, stdout=output)
        try:
            yield api
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
            process.wait()


def test_the_first_event_waits_for_the_model(on_lambda):
    answer = on_lambda.invoke(http_event("POST", "/predict", AMAZING))
    assert answer["statusCode"] == 200
    assert answer["isBase64Encoded"] is False
    assert answer["headers"]["content-type"] == "application/json"
    assert json.loads(answer["body"])[0]["label"] == "POSITIVE"


def test_the_stage_of_an_http_api_is_not_part_of_the_path(on_lambda):
    answer = on_lambda.invoke(http_event("GET", "/prod/health", stage="prod"))
    assert answer["statusCode"] in (200, 503)
    assert "status" in json.loads(answer["body"])
    answer = on_lambda.invoke(http_event("GET", "/production/health", stage="prod"))
    assert answer["statusCode"] == 404


def test_callers_are_told_apart_by_what_aws_has_seen():
    def status(api, address: str) -> int:
        event = http_event("POST", "/predict", AMAZING)
        event["requestContext"]["http"]["sourceIp"] = address
        event["headers"]["x-forwarded-for"] = "203.0.113.9"
        return api.invoke(event)["statusCode"]

    with behind_runtime_api(RATE_LIMITS="anonymous=1/h") as api:
        addresses = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
        answers = [status(api, address) for address in addresses]
    assert answers == [200, 429, 200, 200, 429]


def test_errors_are_answers_not_failures_of_the_function(on_lambda):
    answer = on_lambda.invoke(http_event("POST", "/predict", {"text": 5}))
    assert answer["statusCode"] == 422
    assert json.loads(answer["body"])["error"]["field"] == "text"


def test_missing_lambda_settings_are_named():
    result = run_to_end(AWS_LAMBDA_RUNTIME_API="127.0.0.1:1")
    assert result.returncode == 2
    assert "AWS_LAMBDA_FUNCTION_NAME" in result.stderr
