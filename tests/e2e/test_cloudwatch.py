"""Metrics as lines of the log, as CloudWatch reads them."""

import collections
import json

import pytest
from function import run_to_end, running
from metrics import families
from runtime_api import http_event
from test_lambda import behind_runtime_api

TEXT = {"text": "What a film!"}


def metrics(lines: list[dict]) -> dict:
    """What the lines with metrics say together, by names and labels: numbers, or counts of values."""
    said = collections.defaultdict(float)
    for line in lines:
        if "_aws" not in line:
            continue
        [directive] = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "Edge/NLP" and line["_aws"]["Timestamp"] > 1.7e12
        [dimensions] = directive["Dimensions"]
        assert line["function"] == "predict" and len(dimensions) <= 30
        labels = frozenset((name, line[name]) for name in dimensions if name != "function")
        assert all(isinstance(value, str) for _, value in labels)
        declared = {metric["Name"] for metric in directive["Metrics"]}
        assert declared == line.keys() - {"_aws"} - set(dimensions), "what is a metric is declared"
        for name in declared:
            value = line[name]
            if isinstance(value, dict):
                assert sum(value["Counts"]) == value["Count"] and len(value["Values"]) <= 100
                if len(value["Values"]) == 1:
                    mean = pytest.approx(value["Sum"] / value["Count"])
                    assert value["Min"] == value["Max"] == value["Values"][0] == mean
                value = value["Count"]
            said[name, labels] += value
    return said


def test_on_lambda_an_answer_comes_after_its_metrics(tmp_path):
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        behind_runtime_api(output, METRICS_NAMESPACE="Edge/NLP", LOG_FORMAT="json") as api,
    ):
        for number in [1, 2]:
            assert api.invoke(http_event("POST", "/predict", TEXT))["statusCode"] == 200
            said = metrics([json.loads(line) for line in log.read_text().splitlines()])
            labels = {"model": "minilm-l6-h384-sst2", "status": "success"}
            assert said["predictions_total", frozenset(labels.items())] == number
            labels = {"method": "POST", "route": "/predict"}
            assert said["http_request_duration_seconds", frozenset(labels.items())] == number
            assert said["inference_forward_seconds", frozenset()] == number
            # The start is told once.
            total = said["inference_cold_start_seconds", frozenset({("stage", "total")})]
            assert 0 < total < 60
            assert api.invoke(http_event("GET", "/health"))["statusCode"] == 200


def test_the_end_tells_what_was_not_told():
    with running(METRICS_NAMESPACE="Edge/NLP") as function:
        function.wait_until_healthy()
        for text in ["What a film!", "", "Never again. " * 300]:
            function.predict(text=text)
        page = families(function.url)
        assert function.terminate() == 0
        said = metrics(function.read_logs())
    compared = 0
    for family in page.values():
        for sample in family.samples:
            name = sample.name.removesuffix("_count")
            # A gauge's lines do not add up; the page itself is a request; the process is left out.
            if family.type == "gauge" or sample.name.endswith(("_bucket", "_sum", "_created")):
                continue
            if sample.labels.get("route") == "/metrics" or name.startswith("process_"):
                continue
            assert said[name, frozenset(sample.labels.items())] == sample.value, sample
            compared += sample.value > 0
    assert compared > 8
    assert not [name for name, _ in said if name.startswith("process_")]


def test_who_does_not_ask_has_no_such_lines():
    with running() as function:
        function.wait_until_healthy()
        assert function.terminate() == 0
        assert not any("_aws" in line for line in function.read_logs())


@pytest.mark.parametrize("wrong", ["AWS/Lambda", "Edge?", "x" * 256])
def test_a_namespace_that_cannot_be_is_refused(wrong):
    result = run_to_end("--check", METRICS_NAMESPACE=wrong)
    assert result.returncode == 2 and "METRICS_NAMESPACE: " in result.stderr
