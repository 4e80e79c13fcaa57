"""Schemathesis: what /openapi.json promises is what the function does, and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tokens import token

SECS = 300
# Stricter than the defaults, which let redirects, 429 and 5xx pass, but for one thing: a text that is
# too long, or too many texts, are a refusal as well, and TEI's status for it is 413.
CONFIG = """
[warnings]
fail-on = true
[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 406, 413, 415, 422]
[checks.positive_data_acceptance]
expected-statuses = ["2xx"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx"]
"""


@pytest.mark.parametrize("name", ["predict", "embed", "rerank", "secured"])
def test_the_function_does_what_its_schema_says(request, tmp_path, name):
    function = request.getfixturevalue(name)
    # With a token, Schemathesis also tries to do without, and with another.
    credentials = f'[auth.openapi.token]\nbearer = "{token()}"\n' if name == "secured" else ""
    (tmp_path / "schemathesis.toml").write_text(CONFIG + credentials)
    ran = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file=schemathesis.toml"),
            *("run", f"{function.url}/openapi.json", "--checks=all", "--mode=all"),
            *("--seed=1", "--generation-deterministic"),
            *("--max-examples=100", "--workers=1", "--continue-on-failure", "--no-color"),
        ],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECS,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # It was not one that has nothing to say.
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert re.search(rf"✅ +{phase}\n", ran.stdout), ran.stdout
    assert httpx.get(f"{function.url}/health").status_code == 200


@pytest.mark.parametrize("name", ["predict", "embed", "rerank"])
def test_the_schema_names_every_route_of_the_function(request, name):
    schema = httpx.get(f"{request.getfixturevalue(name).url}/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    every = {"/", "/docs", "/openapi.json", "/health", "/ping", "/info", "/activity", "/metrics"}
    every |= {"/tokenize", "/decode", "/invocations", "/v1/models", "/v2", "/v2/health/ready"}
    own = {
        "predict": {"/predict", "/v1/classify"},
        "embed": {"/embed", "/similarity", "/v1/embeddings"},
        "rerank": {"/rerank", "/v1/rerank", "/v2/rerank"},
    }
    assert every | own[name] <= set(schema["paths"])
    for other in own.keys() - {name}:
        assert not own[other] & set(schema["paths"])
