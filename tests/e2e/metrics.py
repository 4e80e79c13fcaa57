"""The page of a function's metrics, read by the parsers of Prometheus' own client."""

import httpx
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

OPEN_METRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


def families(url: str) -> dict:
    """The metrics behind `url` by their names, without the `_total` of counters."""
    answer = httpx.get(f"{url}/metrics", headers=OPEN_METRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    return {
        family.name: family for family in openmetrics.text_string_to_metric_families(answer.text)
    }


def plain(url: str) -> dict:
    """The same for a scraper that knows only the older format."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(url: str, name: str, **labels: str) -> float:
    """The sample `name` of these very labels; 0 if there is none."""
    samples = [
        sample.value
        for family in families(url).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(samples) <= 1, samples
    return samples[0] if samples else 0
