"""Traces, as a collector gets them."""

import concurrent.futures
import re
import socket
import time

import httpx
import pytest
from balancer import balanced, free_ports
from collector import LATER, NEVER, attributes, over_grpc, over_http
from function import run_to_end, running
from metrics import OPEN_METRICS, value
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from runtime_api import http_event
from test_lambda import behind_runtime_api

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}
STEPS = ["tokenization", "queue", "model_inference", "postprocessing"]


def sending(url: str, **settings) -> dict:
    """Settings by which spans come soon."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": 50, **settings}


def predict(function, **headers) -> httpx.Response:
    body = {"text": "What a film!"}
    return httpx.post(f"{function.url}/predict", json=body, headers=headers, timeout=60)


def milliseconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


@pytest.fixture(params=["http/protobuf", "grpc"])
def traced(request):
    """A function, and the collector of its traces."""
    collector = over_grpc() if request.param == "grpc" else over_http()
    with collector as collector:
        settings = sending(collector.url, OTEL_EXPORTER_OTLP_PROTOCOL=request.param)
        settings |= {
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=k-1",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with running(**settings) as function:
            function.wait_until_healthy()
            yield function, collector


def test_a_request_is_a_span_of_its_callers_trace(traced):
    function, collector = traced
    answer = predict(function, **SAMPLED, **{"x-request-id": "r-1"})
    [span] = collector.named("predict")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert (span.kind, span.trace_state) == (Span.SPAN_KIND_SERVER, "vendor=1")
    assert answer.headers["traceresponse"] == f"00-{TRACE_ID}-{span.span_id.hex()}-01"
    said = attributes(span)
    health = httpx.get(f"{function.url}/health").json()
    assert said == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "request_id": "r-1",
        "num_texts": 1,
        "text_length": len("What a film!"),
        "num_tokens": int(answer.headers["x-compute-tokens"]),
        "prediction_label": "POSITIVE",
        "model": health["model"],
        "model_version": health["version"],
    }
    [resource, *_] = collector.resources
    assert resource["service.name"] == "predict"
    assert resource["deployment.environment.name"] == "test"
    assert all(headers["api-key"] == "k-1" for headers in collector.headers)


def test_a_hop_between_keeps_the_trace(traced, tmp_path):
    function, collector = traced
    with balanced(tmp_path, [function.port] * 3) as balancer:
        body = {"text": "What a film!"}
        answer = httpx.post(f"{balancer.url}/predict", json=body, headers=SAMPLED)
    [span] = collector.named("predict")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert answer.headers["traceresponse"] == f"00-{TRACE_ID}-{span.span_id.hex()}-01"


def test_its_steps_are_its_children_and_as_long_as_the_log_says(traced):
    function, collector = traced
    predict(function)
    [span] = collector.named("predict")
    collector.named("postprocessing")
    steps = collector.children(span)
    assert list(steps) == STEPS
    assert all(step.trace_id == span.trace_id for step in steps.values())
    ends = [span.start_time_unix_nano]
    for step in steps.values():
        assert ends[-1] <= step.start_time_unix_nano <= step.end_time_unix_nano
        ends.append(step.end_time_unix_nano)
    assert ends[-1] == span.end_time_unix_nano
    assert function.terminate() == 0
    [line] = [line for line in function.read_logs() if line.get("route") == "/predict"]
    assert line["trace_id"] == span.trace_id.hex()
    for name, logged in [("tokenization", "tokenization_ms"), ("model_inference", "forward_ms")]:
        assert milliseconds(steps[name]) == pytest.approx(line[logged], abs=0.01), name
    assert milliseconds(span) == pytest.approx(line["duration_ms"], rel=0.5, abs=1)


def test_requests_and_the_batch_that_they_share_name_each_other():
    with over_http() as collector:
        settings = sending(collector.url, NUM_THREADS=1, MAX_QUEUE_WAIT_MS=1)
        with (
            running(**settings) as function,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            function.wait_until_healthy()
            # The first keeps the engine busy while the others come.
            texts = ["A long film. " * 300] + ["What a film!"] * 7
            for answer in pool.map(lambda text: function.predict(text=text), texts):
                assert answer.status_code == 200
            requests = collector.named("predict", 8)
            inferences = collector.named("model_inference", 8)
            batches = {span.span_id: span for span in collector.named("batch", 2)}
    of_request = {span.span_id: span for span in requests}
    shared = set()
    for inference in inferences:
        request = of_request[inference.parent_span_id]
        [link] = inference.links
        batch = batches[link.span_id]
        assert batch.trace_id == link.trace_id != request.trace_id
        members = {(link.trace_id, link.span_id) for link in batch.links}
        assert (request.trace_id, request.span_id) in members
        assert attributes(batch)["batch_size"] == attributes(inference)["batch_size"]
        assert len(members) == attributes(batch)["batch_size"]
        shared.add(len(members))
    assert max(shared) > 1, "no two requests shared a batch"


def test_a_start_is_a_trace(traced):
    function, collector = traced
    [start] = collector.named("cold_start")
    assert not start.parent_span_id
    stages = collector.children(start)
    said = value(function.url, "inference_cold_start_seconds", stage="total")
    assert milliseconds(start) == pytest.approx(said * 1e3, abs=0.1)
    for name, stage in stages.items():
        said = value(function.url, "inference_cold_start_seconds", stage=name)
        assert milliseconds(stage) == pytest.approx(said * 1e3, abs=0.1), name
    assert {"bundle", "engine", "tokenizer", "warm_up"} <= stages.keys()


def test_what_a_caller_does_not_keep_is_not_sent(traced):
    function, collector = traced
    answer = predict(function, traceparent=SAMPLED["traceparent"].replace("-01", "-00"))
    assert answer.headers["traceresponse"].endswith("-00")
    predict(function, **SAMPLED)
    [span] = collector.named("predict")
    assert span.trace_id.hex() == TRACE_ID


def test_a_failure_is_one_and_a_refusal_is_not(traced):
    function, collector = traced
    assert function.predict(text="").status_code == 422
    [refused] = collector.named("predict")
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert attributes(refused)["http.response.status_code"] == 422
    assert collector.children(refused) == {}


def test_probes_and_scrapes_have_no_spans(traced):
    function, collector = traced
    for path in ["/health", "/metrics"]:
        assert "traceresponse" not in httpx.get(f"{function.url}{path}").headers
    predict(function)
    collector.named("predict")
    routes = {attributes(span).get("http.route") for span in collector.spans}
    assert routes <= {"/predict", None}


def test_a_latency_shows_the_trace_that_it_comes_from(traced):
    function, _ = traced
    predict(function, **SAMPLED)
    page = httpx.get(f"{function.url}/metrics", headers=OPEN_METRICS).text
    for name in ["prediction_latency_seconds", "http_request_duration_seconds"]:
        exemplar = rf'^{name}_bucket{{.*}} \d+ # {{trace_id="{TRACE_ID}"}} '
        assert re.search(exemplar, page, re.MULTILINE), name
    assert "trace_id" not in httpx.get(f"{function.url}/metrics").text


def test_the_end_sends_what_is_left():
    with over_http() as collector:
        settings = sending(collector.url, OTEL_BSP_SCHEDULE_DELAY=3_600_000)
        with running(**settings) as function:
            function.wait_until_healthy()
            for _ in range(20):
                predict(function)
            assert collector.spans == []
            assert function.terminate() == 0
        assert len(collector.named("predict")) == 20


def test_a_share_is_kept():
    with over_http() as collector:
        sampler = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
        with running(**sending(collector.url, **sampler)) as function:
            function.wait_until_healthy()
            for _ in range(100):
                predict(function)
            assert function.terminate() == 0
        # One in a million times this is outside of five standard deviations.
        assert 25 <= len(collector.named("predict")) <= 75


def test_nobody_waits_for_a_collector_that_is_gone():
    with socket.socket() as deaf:
        # Connections are taken by the system, and never answered.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        settings = sending(url, OTEL_BSP_EXPORT_TIMEOUT=200, OTEL_BSP_MAX_QUEUE_SIZE=16)
        with running(**settings) as function:
            function.wait_until_healthy()
            for _ in range(50):
                assert predict(function).status_code == 200
            warning = function.wait_for_log("traces cannot be sent")
            assert warning["level"] == "WARN"
            assert value(function.url, "spans_dropped_total") > 0
            began = time.monotonic()
            assert function.terminate() == 0
            assert time.monotonic() - began < 4


def test_a_collector_that_comes_back_is_sent_to_again():
    (port,) = free_ports(1)
    settings = sending(f"http://127.0.0.1:{port}", OTEL_BSP_EXPORT_TIMEOUT=200)
    with running(**settings) as function:
        function.wait_until_healthy()
        predict(function)
        function.wait_for_log("traces cannot be sent")
        with over_http(port) as collector:
            predict(function)
            assert collector.named("predict")
            function.wait_for_log("traces are sent again")


def test_what_a_collector_cannot_take_now_is_sent_again(traced):
    function, collector = traced
    collector.named("cold_start")
    collector.refusals += [LATER, LATER]
    predict(function)
    assert collector.named("predict")
    assert collector.refusals == []
    assert value(function.url, "spans_dropped_total") == 0


def test_what_a_collector_never_takes_is_dropped_and_counted(traced):
    function, collector = traced
    collector.named("cold_start")
    collector.refusals += [NEVER]
    predict(function)
    function.wait_for_log("traces cannot be sent")
    dropped = value(function.url, "spans_dropped_total")
    assert dropped > 0
    predict(function)
    assert collector.named("predict")
    assert value(function.url, "spans_dropped_total") == dropped


def test_on_lambda_a_trace_is_sent_before_its_answer():
    with over_http() as collector:
        settings = sending(collector.url, OTEL_BSP_SCHEDULE_DELAY=3_600_000, AWS_REGION="eu-west-1")
        with behind_runtime_api(**settings) as api:
            answer = api.invoke(http_event("POST", "/predict", {"text": "What a film!"}))
            assert answer["statusCode"] == 200
            names = [span.name for span in collector.spans]
            assert "predict" in names and "cold_start" in names
        [resource, *_] = collector.resources
        assert resource["faas.name"] == "predict" and resource["cloud.region"] == "eu-west-1"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, wrong):
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    settings |= {"OTEL_TRACES_SAMPLER": "traceidratio", name: wrong}
    result = run_to_end("--check", **settings)
    assert result.returncode == 2
    assert f"{name}: " in result.stderr


def test_who_asks_for_no_traces_gets_none():
    with running() as function:
        function.wait_until_healthy()
        answer = predict(function, **SAMPLED)
        assert "traceresponse" not in answer.headers
        assert function.terminate() == 0
        assert all("trace_id" not in line for line in function.read_logs())
