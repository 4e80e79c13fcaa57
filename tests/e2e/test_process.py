"""The life of the process: settings, readiness, overload, logs and the end."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from datetime import datetime

import httpx
import pytest
from balancer import free_ports
from function import PREDICT, ROOT, START_SECS, environment, run_to_end, running
from metrics import value
from tokens import SECRET, token

MODEL = ROOT / "functions" / "predict" / "model"
LONG = "An uneven film that never quite decides what it wants to be. " * 80


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model that a test may break."""
    for name in ("config.json", "tokenizer.json", "model.onnx"):
        shutil.copyfile(MODEL / name, tmp_path / name)
    return tmp_path


def wait_until_healthy(url):
    deadline = time.monotonic() + START_SECS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.01)
    pytest.fail("it does not start")


def test_help_lists_settings_with_defaults():
    result = run_to_end("--help")
    assert result.returncode == 0
    assert "MAX_BODY_BYTES" in result.stdout and "2000000" in result.stdout


def test_all_bad_settings_are_reported_at_once():
    result = run_to_end(PORT="x", MAX_INPUT_CHARS="0", RUST_LOG="info")
    assert result.returncode == 2
    assert result.stderr == (
        'bad settings: PORT: "x" is not a whole number; MAX_INPUT_CHARS: 0 is below 1\n'
    )
    assert run_to_end(RUST_LOG="predict=loud").returncode == 2
    assert run_to_end("--quiet").returncode == 2


def test_check_tells_a_good_model_from_a_bad_one(model):
    assert run_to_end("--check").returncode == 0
    (model / "model.onnx").write_bytes(b"not a model")
    assert run_to_end("--check", MODEL_URI=model).returncode == 1


def test_the_model_is_found_beside_the_binary(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bin")
    shutil.copy(ROOT / "target" / "release" / "predict", folder)
    shutil.copytree(model, folder / "model")
    assert run_to_end("--check", binary=folder / "predict", cwd="/").returncode == 0


def test_without_a_model_it_is_not_ready_and_says_why(tmp_path):
    with running(MODEL_URI=tmp_path / "nowhere") as function:
        error = function.wait_for_log("no model")
        assert "No such file" in str(error)
        health = httpx.get(f"{function.url}/health")
        assert health.status_code == 503
        assert "config.json" in health.json()["reason"]
        answer = function.predict(text="hello")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_unavailable"
        assert function.terminate() == 0


@pytest.mark.parametrize("damage", ["labels", "tokenizer", "graph", "digest"])
def test_a_damaged_model_is_refused_not_served(model, damage):
    uri = str(model)
    if damage == "labels":
        config = (model / "config.json").read_text()
        (model / "config.json").write_text(config.replace('"1": "POSITIVE"', '"1": "A", "2": "B"'))
    elif damage == "tokenizer":
        (model / "tokenizer.json").write_text("{}")
    elif damage == "graph":
        graph = (model / "model.onnx").read_bytes()
        (model / "model.onnx").write_bytes(graph[: len(graph) // 2])
    else:
        uri += "#sha256=" + "0" * 64
    with running(MODEL_URI=uri) as function:
        function.wait_for_log("no model")
        assert httpx.get(f"{function.url}/health").status_code == 503


def test_the_port_is_open_while_the_model_loads(model):
    tokenizer = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    with running(MODEL_URI=model, REQUEST_TIMEOUT_MS=2000) as function:
        health = httpx.get(f"{function.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")

        late = function.predict(text="hello")
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "loading"
        assert late.headers["retry-after"] == "1"

        def send_tokenizer():
            with open(model / "tokenizer.json", "wb") as pipe:
                pipe.write(tokenizer)

        sender = threading.Thread(target=send_tokenizer)
        sender.start()
        function.wait_until_healthy()
        sender.join()
        assert function.predict(text="hello").status_code == 200


def test_a_full_queue_refuses_at_once_and_answers_the_rest():
    with running(MAX_QUEUE_REQUESTS=1, MAX_BATCH_REQUESTS=1, NUM_THREADS=1) as function:
        function.wait_until_healthy()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: function.predict(text=LONG), range(64)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"


def test_a_request_that_takes_too_long_is_ended():
    with running(REQUEST_TIMEOUT_MS=3) as function:
        function.wait_until_healthy()
        answer = function.predict(text=LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["message"] == "no answer within 3 ms"


def test_truncation_can_be_off():
    with running(TRUNCATION="off", MAX_INPUT_TOKENS=16) as function:
        function.wait_until_healthy()
        error = function.predict(text=LONG).json()["error"]
        assert (error["code"], error["field"], error["limit"]) == (
            "too_long",
            "text",
            16,
        )
        assert function.predict(text="short").status_code == 200


def test_sigterm_lets_what_is_in_flight_end():
    with running() as function:
        function.wait_until_healthy()
        body = b'{"text": "This movie is amazing!"}'
        with socket.create_connection(("127.0.0.1", function.port)) as caller:
            caller.sendall(
                b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n" % len(body) + body[:10]
            )
            # An answered request behind it on another connection: the first is in flight by now.
            assert function.predict(text="hello").status_code == 200
            function.process.terminate()
            function.wait_for_log("draining")

            refused = function.predict(text="hello")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert refused.headers["connection"] == "close"

            caller.sendall(body[10:])
            answer = b"".join(iter(lambda: caller.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK") and b"POSITIVE" in answer
        assert function.process.wait(timeout=10) == 0


def test_sigterm_under_load_loses_no_request_sent_before():
    signalled_at = None

    def call(url):
        """Calls until refused; gives the number of answers."""
        with httpx.Client(timeout=60) as client:
            for answered in itertools.count():
                sent_at = time.monotonic()
                try:
                    answer = client.post(f"{url}/predict", json={"text": LONG})
                except httpx.TransportError as error:
                    assert signalled_at and sent_at > signalled_at, error
                    return answered
                if answer.status_code == 503:
                    return answered
                assert answer.status_code == 200, answer.text

    with running() as function, concurrent.futures.ThreadPoolExecutor(8) as pool:
        function.wait_until_healthy()
        calls = [pool.submit(call, function.url) for _ in range(8)]
        concurrent.futures.wait(calls, timeout=2)
        signalled_at = time.monotonic()
        assert function.terminate() == 0
        num_answered = sum(call.result() for call in calls)
        assert num_answered > 8
        done = {"message": "request done", "route": "/predict", "status": 200}.items()
        lines = [line for line in function.read_logs() if done <= line.items()]
        assert len(lines) == num_answered


def test_whoever_does_not_read_the_log_stops_no_request():
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [PREDICT],
        cwd=ROOT,
        env=environment(PORT=port, RUST_LOG="trace"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until_healthy(url)
        with httpx.Client(base_url=url) as client:
            # A line is some 400 bytes, and 1 MiB of them may wait.
            for _ in range(10):
                for _ in range(1000):
                    assert client.post("/predict", json={"text": "hello"}).status_code == 200
                if value(url, "log_lines_dropped_total") > 0:
                    break
            assert value(url, "log_lines_dropped_total") > 0
        threading.Timer(1, process.terminate).start()
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=10) == 0
        assert lines[-1]["message"] == "stopped"
    finally:
        process.kill()
        process.wait()


def test_a_request_has_one_line_with_what_it_took():
    with running() as function:
        function.wait_until_healthy()
        httpx.post(
            f"{function.url}/predict",
            json={"text": "What a film!"},
            headers={"x-request-id": "id-1"},
        )
        function.predict(text="")
        assert function.terminate() == 0
        lines = [line for line in function.read_logs() if line.get("route") == "/predict"]
        done, refused = lines
        assert done["message"] == refused["message"] == "request done"
        assert (done["level"], done["function"], done["method"]) == ("INFO", "predict", "POST")
        assert (done["status"], refused["status"]) == (200, 422)
        assert done["request_id"] == "id-1"
        assert len(refused["request_id"]) == 32
        assert (done["texts"], done["text_length"], done["tokens"]) == (1, 12, 6)
        assert done["label"] == "POSITIVE"
        assert done["module"].startswith("sanderling")
        assert datetime.fromisoformat(done["timestamp"]).tzinfo is not None
        took = [done[f"{stage}_ms"] for stage in ["tokenization", "queue", "forward"]]
        assert 0 < sum(took) < done["duration_ms"]
        assert not {"texts", "label", "forward_ms"} & refused.keys()


def test_no_level_logs_a_text_a_token_or_a_secret():
    planted = {"text": "swordfish opinion", "token": token(sub="goldfish"), "secret": SECRET}
    settings = {"AUTH": "jwt", "JWT_SECRET": SECRET, "HF_TOKEN": "hf_codfish"}
    with running(RUST_LOG="trace", **settings) as function:
        function.wait_until_healthy()
        headers = {"authorization": f"Bearer {planted['token']}"}
        for body in [{"text": planted["text"]}, {"inputs": [["a", planted["text"]], ["b"]]}]:
            answer = httpx.post(f"{function.url}/predict", json=body, headers=headers)
            assert answer.status_code == 200
        for content in [b'{"text": "swordfish', b'{"text": 1, "swordfish": 2}']:
            httpx.post(f"{function.url}/predict", content=content, headers=headers)
        httpx.post(f"{function.url}/predict?x=swordfish", json={"text": "swordfish <script"})
        assert function.terminate() == 0
        log = json.dumps(function.read_logs())
        assert "token refused" in log or "request done" in log
        signature = planted["token"].rsplit(".", 1)[1]
        for secret in ["swordfish", "goldfish", "codfish", signature, SECRET]:
            assert secret not in log


def test_a_port_in_use_ends_the_process_with_the_reason():
    with running() as function:
        result = run_to_end(PORT=function.port)
        assert result.returncode == 1
        assert "Address already in use" in result.stdout
