"""Metrics that are sent by OTLP, as a collector gets them."""

import time

import httpx
import pytest
from balancer import free_ports
from collector import attributes, over_grpc, over_http
from function import run_to_end, running
from metrics import families
from runtime_api import http_event
from test_lambda import behind_runtime_api

WAIT_SECS = 30
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TEXT = {"text": "What a film!"}
SUCCESS = frozenset({"model": "minilm-l6-h384-sst2", "status": "success"}.items())


def pushing(url: str, **settings) -> dict:
    """Settings by which metrics come by themselves once an hour."""
    settings = {"OTEL_METRIC_EXPORT_INTERVAL": 3_600_000, **settings}
    return {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": url, **settings}


def points(metric) -> dict:
    """What a metric says by its labels: a number, or a histogram's sum and its buckets, summed up."""
    kind = metric.WhichOneof("data")
    said = {}
    for point in getattr(metric, kind).data_points:
        if kind == "histogram":
            totals = [sum(point.bucket_counts[: i + 1]) for i in range(len(point.bucket_counts))]
            bounds = [*point.explicit_bounds, float("inf")]
            assert point.count == totals[-1]
            value = (point.sum, dict(zip(bounds, totals, strict=True)))
        else:
            value = point.as_double
        said[frozenset(attributes(point).items())] = value
    return said


def scraped(family) -> dict:
    """The same of a family on the page."""
    said = {}
    for sample in family.samples:
        labels = dict(sample.labels)
        bound = labels.pop("le", None)
        key = frozenset(labels.items())
        if family.type != "histogram":
            said[key] = sample.value
        elif sample.name.endswith("_sum"):
            said[key] = (sample.value, said[key][1])
        elif bound:
            said.setdefault(key, (0, {}))[1][float(bound)] = sample.value
    return said


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("compression", [{"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}, {}], ids=len)
def test_what_is_sent_is_what_is_scraped(protocol, compression):
    with over_grpc() if protocol == "grpc" else over_http() as collector:
        settings = pushing(
            collector.url,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS="api-key=k%2D1",
            **compression,
        )
        with running(**settings) as function:
            function.wait_until_healthy()
            for _ in range(3):
                assert function.predict(**TEXT).status_code == 200
            assert function.predict(text="").status_code == 422
            page = families(function.url)
            assert collector.pushes == []
            assert function.terminate() == 0
    pushed = collector.pushes[-1]
    assert all(headers["api-key"] == "k-1" for headers in collector.headers)
    assert collector.resources[-1]["service.name"] == "predict"
    assert collector.resources[-1]["service.instance.id"]
    names = {f"{name}_total" if of.type == "counter" else name for name, of in page.items()}
    assert pushed.keys() == names
    # These went on.
    moving = {name for name in names if name.startswith(("http_", "process_", "queue_"))}
    for name in names - moving:
        family = page[name.removesuffix("_total")]
        assert points(pushed[name]) == scraped(family), name
        assert pushed[name].description == family.documentation
    assert points(pushed["predictions_total"])[SUCCESS] == 3
    assert pushed["prediction_latency_seconds"].unit == "s"
    assert pushed["predictions_total"].sum.is_monotonic


def test_they_come_by_themselves_and_name_traces():
    with over_http() as collector:
        settings = pushing(collector.url, OTEL_METRIC_EXPORT_INTERVAL=50)
        with running(**settings) as function:
            function.wait_until_healthy()
            headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
            httpx.post(f"{function.url}/predict", json=TEXT, headers=headers)
            deadline = time.monotonic() + WAIT_SECS
            exemplars = []
            while not exemplars:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                newest = collector.pushes[-1] if collector.pushes else {}
                if "prediction_latency_seconds" in newest:
                    latencies = newest["prediction_latency_seconds"].histogram.data_points
                    exemplars = [one for point in latencies for one in point.exemplars]
    assert [exemplar.trace_id.hex() for exemplar in exemplars] == [TRACE_ID]


def test_a_collector_that_comes_back_gets_all():
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings = pushing(url, OTEL_METRIC_EXPORT_INTERVAL=50, OTEL_TRACES_EXPORTER="none")
    with running(**settings) as function:
        function.wait_until_healthy()
        assert function.predict(**TEXT).status_code == 200
        assert function.wait_for_log("metrics cannot be sent")["level"] == "WARN"
        with over_http(port) as collector:
            function.wait_for_log("metrics are sent again")
            assert points(collector.pushes[-1]["predictions_total"])[SUCCESS] == 1
            assert function.terminate() == 0
        warnings = [line for line in function.read_logs() if line.get("level") == "WARN"]
    assert len(warnings) == 1, "it is said once"


def test_on_lambda_they_are_sent_before_the_answer():
    with over_http() as collector, behind_runtime_api(**pushing(collector.url)) as api:
        for number in [1, 2]:
            assert api.invoke(http_event("POST", "/predict", TEXT))["statusCode"] == 200
            assert points(collector.pushes[-1]["predictions_total"])[SUCCESS] == number


def test_who_wants_traces_only_gets_no_metrics():
    with over_http() as collector:
        with running(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as function:
            function.wait_until_healthy()
            assert function.terminate() == 0
        assert collector.spans and not collector.pushes


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "planted-secret"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, wrong):
    settings = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318", name: wrong}
    result = run_to_end("--check", **settings)
    assert result.returncode == 2
    assert result.stderr.count(f"{name}: ") == 1
    assert "planted" not in result.stderr
