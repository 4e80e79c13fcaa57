"""The manifests and the binary agree on settings."""

import re
from pathlib import Path

import pytest
import sam
from knative_schema import quantity
from kustomize import FOLDERS, render

CONFIG = Path(__file__).parents[2] / "runtime/serve/src/config/settings.rs"


def settings() -> set[str]:
    """The variables that the binary reads."""
    return set(re.findall(r'"([A-Z][A-Z0-9_]+)"', CONFIG.read_text()))


def knative_container(folder: str) -> tuple[dict, dict]:
    (service,) = render(folder)
    revision = service["spec"]["template"]["spec"]
    return revision, revision["containers"][0]


def knative_variables(folder: str) -> dict[str, str]:
    _, container = knative_container(folder)
    return {variable["name"]: variable["value"] for variable in container["env"]}


def lambda_properties() -> dict:
    return sam.load()["Resources"]["Predict"]["Properties"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_knative_sets_only_variables_that_the_binary_reads(folder):
    assert knative_variables(folder).keys() - settings() == set()


def test_lambda_sets_only_variables_that_the_binary_reads():
    assert lambda_properties()["Environment"]["Variables"].keys() - settings() == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_knative_waits_longer_than_the_function(folder):
    revision, _ = knative_container(folder)
    timeout_ms = int(knative_variables(folder)["REQUEST_TIMEOUT_MS"])
    assert revision["timeoutSeconds"] * 1000 > timeout_ms


def test_lambda_waits_longer_than_the_function():
    function = lambda_properties()
    timeout_ms = int(function["Environment"]["Variables"]["REQUEST_TIMEOUT_MS"])
    assert function["Timeout"] * 1000 > timeout_ms


@pytest.mark.parametrize("folder", FOLDERS)
def test_threads_match_the_cpu_limit(folder):
    _, container = knative_container(folder)
    cpus = quantity(container["resources"]["limits"]["cpu"])
    assert int(knative_variables(folder).get("NUM_THREADS", cpus)) == cpus
