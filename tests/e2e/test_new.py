"""`sanderling new`: the function it writes builds, passes its own test, and answers."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from function import ROOT, running

MODEL = ROOT / "functions" / "predict" / "model"
SANDERLING = ROOT / "target" / "release" / "sanderling"


def new(folder: Path, *more: str) -> subprocess.CompletedProcess:
    command = [SANDERLING, "new", folder, "--model", MODEL, *more]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def spam():
    """The folder of a new function, within the repository: so it is built from it."""
    folder = ROOT / "target" / "new" / "spam"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    assert new(folder).returncode == 0
    return folder


def cargo(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")}
    return subprocess.run(
        ["cargo", *arguments],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_new_function_is_short_and_formatted(spam):
    assert len((spam / "src" / "main.rs").read_text().splitlines()) < 45
    assert cargo(spam, "fmt", "--check").stdout == ""


def test_a_new_function_passes_its_own_test(spam):
    tested = cargo(spam, "test", "--release")
    assert tested.returncode == 0, tested.stderr + tested.stdout
    assert "2 passed" in tested.stdout


def test_a_new_function_has_what_every_function_has(spam):
    assert cargo(spam, "build", "--release").returncode == 0
    with running(binary=ROOT / "target" / "release" / "spam", MODEL_URI=MODEL) as function:
        function.wait_until_healthy()
        answer = function.post("/spam", text="What a film!")
        assert answer.json()["label"] == "POSITIVE"
        assert answer.headers["x-compute-tokens"] == "6" and "server-timing" in answer.headers
        assert function.post("/spam", text="").json()["error"]["code"] == "empty"
        document = httpx.get(f"{function.url}/openapi.json").json()
        question = document["components"]["schemas"]["Question"]
        assert document["paths"]["/spam"]["post"]["summary"] == "The label of a text."
        assert question["properties"]["text"]["type"] == "string"
        assert httpx.get(f"{function.url}/v1/models/spam").json()["ready"]
        page = httpx.get(function.url, headers={"accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")
        assert function.terminate() == 0


def test_nothing_is_written_over(spam):
    before = (spam / "src" / "main.rs").stat().st_mtime_ns
    refused = new(spam)
    assert refused.returncode == 1 and "File exists" in refused.stderr
    assert (spam / "src" / "main.rs").stat().st_mtime_ns == before


def test_a_name_that_cannot_be_a_crate_or_a_service_is_refused(tmp_path):
    refused = new(tmp_path / "Spam_2")
    assert refused.returncode == 1 and '"Spam_2" is no name of a function' in refused.stderr
    assert not (tmp_path / "Spam_2").exists()


def test_elsewhere_it_is_built_from_the_repository(tmp_path):
    assert new(tmp_path / "spam").returncode == 0
    manifest = (tmp_path / "spam" / "Cargo.toml").read_text()
    assert 'git = "https://github.com/sanderling-rs/sanderling"' in manifest
