"""What a function counts: each number against what was done, by Prometheus' own parsers."""

import functools
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from callers import Caller, limited
from function import ROOT, TOKEN, running
from metrics import families, plain, value
from redis_server import redis_server
from tokens import SECRET, token

MODEL = "minilm-l6-h384-sst2"
DASHBOARD_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]
LONG_TEXT = "A film that stays with you for days and days. " * 60


@pytest.fixture
def function():
    with running() as function:
        function.wait_until_healthy()
        yield function


def test_predictions_are_counted_by_text(function):
    assert value(function.url, "predictions_total", model=MODEL, status="error") == 0
    for body in [{"text": "What a film!"}, {"inputs": [["a"], ["b"], ["c"]]}, {"text": ""}]:
        function.predict(**body)
    success = {"model": MODEL, "status": "success"}
    assert value(function.url, "predictions_total", **success) == 4
    assert value(function.url, "prediction_latency_seconds_count", model=MODEL) == 4
    assert value(function.url, "inference_tokenization_seconds_count") == 4
    assert value(function.url, "inference_queue_wait_seconds_count") == 4
    assert value(function.url, "inference_batch_requests_sum") == 4
    passes = value(function.url, "inference_forward_seconds_count")
    assert 2 <= passes <= 4
    assert value(function.url, "inference_batch_tokens_count") == passes
    # [CLS] what a film ! [SEP], and three of one word.
    assert value(function.url, "inference_batch_tokens_sum") == 6 + 3 * 3


def test_requests_are_counted_by_route_and_status(function):
    function.predict(text="What a film!")
    function.predict(text="")
    function.post("/v1/models/predict:predict", instances=["a"])
    for path in ["/a", "/b", "/b/c"]:
        httpx.get(f"{function.url}{path}")
    httpx.request("BREW", f"{function.url}/predict")
    counted = {
        tuple(sample.labels.values()): sample.value
        for sample in families(function.url)["http_requests"].samples
    }
    assert counted == {
        ("POST", "/predict", "200"): 1,
        ("POST", "/predict", "422"): 1,
        ("POST", "/v1/models/{model}", "200"): 1,
        ("GET", "/health", "200"): 1,
        ("GET", "none", "404"): 3,
        ("other", "/predict", "405"): 1,
    }
    of_predict = {"method": "POST", "route": "/predict"}
    assert value(function.url, "http_request_duration_seconds_count", **of_predict) == 2


def test_both_formats_say_the_same(function):
    function.predict(text="What a film!")
    new, old = families(function.url), plain(function.url)
    assert {name for name, family in new.items() if family.samples} <= old.keys()
    assert new["prediction_latency_seconds"].unit == "seconds"
    assert new["inference_batch_tokens"].unit == "tokens"
    for name, family in new.items():
        assert family.documentation.endswith("."), name
        assert family.documentation == old[name].documentation
        assert family.type == old[name].type


def test_buckets_are_those_of_the_dashboards_and_finer(function):
    function.predict(text="What a film!")
    samples = families(function.url)["prediction_latency_seconds"].samples
    bounds = [float(sample.labels["le"]) for sample in samples if "le" in sample.labels]
    assert set(DASHBOARD_BUCKETS) <= set(bounds)
    assert sum(bound < DASHBOARD_BUCKETS[0] for bound in bounds) >= 3


def test_the_model_and_its_start_are_known(function):
    health = httpx.get(f"{function.url}/health").json()
    [info] = families(function.url)["model_info"].samples
    assert info.value == 1
    assert (info.labels["model"], info.labels["version"]) == (health["model"], health["version"])
    assert info.labels["digest"].startswith(health["version"])
    assert len(info.labels["digest"]) == 64
    stages = families(function.url)["inference_cold_start_seconds"].samples
    stages = {sample.labels["stage"]: sample.value for sample in stages}
    assert {"bundle", "engine", "tokenizer", "warm_up", "total"} <= stages.keys()
    assert 0 < max(stages.values()) == stages["total"] < 60


def test_the_process_is_known(function):
    of_process = families(function.url)
    assert of_process["process_open_fds"].samples[0].value > 3
    assert of_process["process_resident_memory_bytes"].samples[0].value > 1e6
    start = of_process["process_start_time_seconds"].samples[0].value
    assert abs(time.time() - start) < 60


def test_cut_texts_are_counted(function):
    function.predict(text=LONG_TEXT)
    function.predict(text="short")
    assert value(function.url, "inference_truncated_total") == 1


def test_the_queue_is_as_long_as_it_is():
    """All texts wait from one moment on, so that the queue only gets shorter: what it is said to be
    lies between what it was before and what it is after."""
    settings = {"MAX_BATCH_REQUESTS": 1, "MAX_CLIENT_BATCH_SIZE": 512, "NUM_THREADS": 1}
    with running(**settings) as function, httpx.Client(base_url=function.url) as client:
        function.wait_until_healthy()

        def truth() -> int:
            return client.get("/activity").json()["waiting"]

        texts = [[LONG_TEXT]] * 512
        body = {"inputs": texts}
        call = threading.Thread(target=function.predict, kwargs=body)
        call.start()
        while truth() == 0:
            pass
        seen = set()
        while len(seen) < 20:
            before, said, after = truth(), value(function.url, "queue_length"), truth()
            assert before >= said >= after
            assert before > 0, f"the queue was empty before it was seen 20 times: {seen}"
            seen.add(said)
        call.join()
        assert value(function.url, "queue_length") == truth() == 0


def test_the_page_may_have_a_port_of_its_own():
    with running(METRICS_PORT=0) as function:
        port = int(function.wait_for_log("listening for scrapes")["address"].rsplit(":", 1)[1])
        function.wait_until_healthy()
        assert httpx.get(f"{function.url}/metrics").status_code == 404
        assert httpx.get(f"http://127.0.0.1:{port}/predict").status_code == 404
        assert (
            value(f"http://127.0.0.1:{port}", "predictions_total", model=MODEL, status="success")
            == 0
        )


def test_refused_tokens_are_counted_by_reason():
    with running(AUTH="jwt", JWT_SECRET=SECRET, ALLOWED_ROLES="user") as function:
        function.wait_until_healthy()
        tokens = {
            "missing": None,
            "expired": token(exp=1),
            "invalid": "x.y.z",
            "forbidden": token(role="guest"),
        }
        for bearer in tokens.values():
            headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
            httpx.post(f"{function.url}/predict", json={"text": "a"}, headers=headers)
        for reason in tokens:
            assert value(function.url, "auth_failures_total", reason=reason) == 1


def test_callers_over_their_limit_are_counted_by_listed_roles():
    with limited("user=1/h,premium=2/h") as function:
        function.wait_until_healthy()
        assert value(function.url, "rate_limited_total", role="premium") == 0
        for caller in [
            Caller("ada"),
            Caller("bob", role="made-up-1"),
            Caller("eve", role="made-up-2"),
        ]:
            for _ in range(2):
                caller.ask(function)
        roles = families(function.url)["rate_limited"].samples
        counted = {sample.labels["role"]: sample.value for sample in roles}
        assert counted == {"user": 1, "premium": 0, "other": 2}


def test_redis_is_up_until_it_is_not():
    with redis_server() as server, limited("user=100/h", REDIS_URL=server.url) as function:
        function.wait_until_healthy()
        function.wait_for_log("connected to Redis")
        assert value(function.url, "redis_up") == 1
        server.kill()
        ada = Caller("ada")
        for _ in range(3):
            assert ada.ask(function).status_code == 200
        deadline = time.monotonic() + 10
        while value(function.url, "redis_up") == 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert value(function.url, "redis_up") == 0
        assert value(function.url, "redis_failures_total") >= 1


def test_without_redis_nothing_is_said_of_it(function):
    assert families(function.url)["redis_up"].samples == []


class Folder(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_fetched_bytes_are_counted(tmp_path):
    folder = ROOT / "functions" / "predict" / "model"
    handler = functools.partial(Folder, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with running(MODEL_URI=uri, CACHE_DIR=tmp_path) as function:
            function.wait_until_healthy()
            fetched = value(function.url, "weights_fetched_bytes_total", store="http")
            assert fetched >= (folder / "model.onnx").stat().st_size
        server.shutdown()


def test_a_model_that_does_not_load_is_counted():
    with running(MODEL_URI="/nowhere") as function:
        function.wait_for_log("no model")
        assert value(function.url, "model_load_failures_total") == 1
        assert families(function.url)["model_info"].samples == []


def test_the_function_without_a_model_counts_too(tmp_path):
    (tmp_path / "users").write_text("")
    settings = {"USERS_FILE": tmp_path / "users", "JWT_SECRET": SECRET}
    with running(binary=TOKEN, **settings) as function:
        httpx.post(f"{function.url}/login", json={"username": "a", "password": "b"})
        login = {"method": "POST", "route": "/login", "status": "401"}
        assert value(function.url, "http_requests_total", **login) == 1
