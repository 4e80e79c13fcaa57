"""What watches functions: Prometheus scrapes three of them under load, by the files of the repository."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from collector import over_http
from function import EMBED, EMULATED_GPU, PREDICT, ROOT, SANDERLING, run_to_end, running
from metrics import families
from picture import draw
from redis_server import redis_server
from tokens import SECRET, token

FILES = ROOT / "infra" / "observability"
RERANK_GPU = PREDICT.with_name("rerank-gpu")
RERANKER = ROOT / "tests" / "conformance" / "fixtures" / "reranker"
# All times of the files are divided by it: an hour is 15 seconds.
FASTER = 240
LOAD_SECS = 40
FIRING = 'ALERTS{alertname="FunctionDown",alertstate="firing",function="rerank"}'


def faster(text: str) -> str:
    """`text` with its durations as short as a test needs them."""
    units = {"s": 1, "m": 60, "h": 3600}

    def shorter(match: re.Match) -> str:
        return f"{int(match[2]) * units[match[3]] * 1000 // FASTER}ms"

    return re.sub(r"(?<=([\[ ]))(\d+)([smh])\b", shorter, text)


def rules() -> list[dict]:
    groups = yaml.safe_load((FILES / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> list[str]:
    """The expressions of all panels, for all functions."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    targets = [target for panel in panels for target in panel.get("targets", [])]
    return [target["expr"].replace("$function", ".*") for target in targets]


class Page(BaseHTTPRequestHandler):
    """A page as NVIDIA's exporter writes it."""

    def do_GET(self):
        page = Path(__file__).with_name("dcgm.txt").read_bytes()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


class Prometheus:
    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict]:
        parameters = {"query": faster(expression)}
        answer = httpx.get(f"{self.url}/api/v1/query", params=parameters)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return answer.json()["data"]["result"]

    def query_range(self, expression: str) -> list[tuple[dict, list[float], list[float]]]:
        """The series of `expression` while there was load."""
        now = time.time()
        parameters = {"query": faster(expression), "start": now - LOAD_SECS + 10, "end": now}
        answer = httpx.get(f"{self.url}/api/v1/query_range", params=parameters | {"step": "500ms"})
        return [
            (
                series["metric"],
                [time for time, value in series["values"] if value != "NaN"],
                [float(value) for _, value in series["values"] if value != "NaN"],
            )
            for series in answer.json()["data"]["result"]
        ]

    def exemplars(self, expression: str) -> list[dict]:
        now = time.time()
        parameters = {"query": expression, "start": now - LOAD_SECS, "end": now}
        answer = httpx.get(f"{self.url}/api/v1/query_exemplars", params=parameters)
        return [one for series in answer.json()["data"] for one in series["exemplars"]]

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + 30
        while not self.query(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)


@contextlib.contextmanager
def prometheus(folder: Path, targets: dict[str, list[tuple[int, dict]]]):
    """A real one with the files of the repository; its jobs have `targets`, by port and labels."""
    config = yaml.safe_load(faster((FILES / "prometheus.yml").read_text()))
    for job in config["scrape_configs"]:
        # Debian's Prometheus knows no Kubernetes.
        del job["kubernetes_sd_configs"], job["relabel_configs"]
        job["static_configs"] = [
            {"targets": [f"127.0.0.1:{port}"], "labels": labels}
            for port, labels in targets[job["job_name"]]
        ]
    del config["alerting"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(faster((FILES / "rules.yml").read_text()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            shutil.which("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        stderr=(folder / "log").open("w"),
    )
    try:
        server = Prometheus(port)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/-/ready").status_code == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def call(functions: dict, stop: threading.Event) -> None:
    """Calls every function, and now and then in a way that is refused."""
    headers = {"authorization": f"Bearer {token()}"}
    long_text = "A film that stays with you for days and days. " * 100
    bodies = {
        "predict": ("/predict", {"text": long_text}),
        "embed": ("/embed", {"inputs": ["a", "b"]}),
        "rerank": ("/rerank", {"query": "a", "texts": ["a", "b"]}),
    }
    with httpx.Client(headers=headers) as client:
        while not stop.is_set():
            for name, (path, body) in bodies.items():
                with contextlib.suppress(httpx.TransportError):
                    client.post(f"{functions[name].url}{path}", json=body)
            httpx.post(f"{functions['predict'].url}/predict", json={"text": "a"})
            time.sleep(0.02)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Three functions that have been under load, what watched them, and what got their traces."""
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(over_http())
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": 100}
        redis = stack.enter_context(redis_server())
        settings = {"AUTH": "jwt", "JWT_SECRET": SECRET, "ALLOWED_ROLES": "user"}
        limits = {"RATE_LIMITS": "user=100000/min", "REDIS_URL": redis.url}
        model = f"http://127.0.0.1:{serve(stack, ROOT / 'functions' / 'predict' / 'model')}"
        cache, packed = (
            tmp_path_factory.mktemp("cache"),
            tmp_path_factory.mktemp("model") / "packed",
        )
        assert run_to_end("pack", RERANKER, packed, binary=SANDERLING).returncode == 0
        fetched = {"MODEL_URI": model, "CACHE_DIR": cache}
        functions = {
            "predict": running(binary=PREDICT, **settings, **limits, **fetched, **traces),
            "embed": running(binary=EMBED),
            "rerank": running(binary=RERANK_GPU, MODEL_URI=packed, **EMULATED_GPU),
        }
        functions = {name: stack.enter_context(each) for name, each in functions.items()}
        for function in functions.values():
            function.wait_until_healthy()
        gpu = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Page))
        threading.Thread(target=gpu.serve_forever, daemon=True).start()
        stack.callback(gpu.shutdown)
        ours = [(each.port, {"function": name, "pod": name}) for name, each in functions.items()]
        targets = {"sanderling": ours, "dcgm": [(gpu.server_port, {})]}
        folder = tmp_path_factory.mktemp("prometheus")
        server = stack.enter_context(prometheus(folder, targets))
        stop = threading.Event()
        load = threading.Thread(target=call, args=(functions, stop))
        load.start()
        stack.callback(load.join)
        stack.callback(stop.set)
        time.sleep(LOAD_SECS)
        yield functions, server, collector


def serve(stack: contextlib.ExitStack, folder: Path) -> int:
    """The port of a web server of `folder`."""
    process = stack.enter_context(
        subprocess.Popen(
            ["python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    )
    stack.callback(process.kill)
    return int(re.search(r"port (\d+)", process.stdout.readline())[1])


@pytest.mark.parametrize("expression", dashboard())
def test_every_panel_shows_something(watched, expression):
    assert watched[1].query(expression), expression


def test_the_dashboard_can_be_looked_at(watched):
    """With `SCREENSHOTS=1`, the picture is kept beside the dashboard."""
    text = (FILES / "dashboard.json").read_text().replace("$function", ".*")
    picture = draw(json.loads(text), watched[1].query_range)
    assert "No data" not in picture
    if os.environ.get("SCREENSHOTS"):
        (FILES / "dashboard.svg").write_text(picture)


def test_a_latency_leads_to_its_trace(watched):
    _, server, collector = watched
    exemplars = server.exemplars('prediction_latency_seconds_bucket{function="predict"}')
    told = {exemplar["labels"]["trace_id"] for exemplar in exemplars}
    assert told
    deadline = time.monotonic() + 30
    while told - {span.trace_id.hex() for span in list(collector.spans)}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_collector_s_parts_are_those_of_its_pipelines():
    config = yaml.safe_load((FILES / "collector.yml").read_text())
    pipelines = config["service"]["pipelines"].values()
    for kind in ["receivers", "processors", "exporters"]:
        assert {name for pipeline in pipelines for name in pipeline[kind]} == config[kind].keys()
    ports = {of["endpoint"] for of in config["receivers"]["otlp"]["protocols"].values()}
    assert ports == {"0.0.0.0:4317", "0.0.0.0:4318"}, "those of the protocol"


@pytest.mark.parametrize("rule", [rule for rule in rules() if "record" in rule], ids=str)
def test_every_record_is_there(watched, rule):
    for function in ["predict", "embed", "rerank"]:
        assert watched[1].query(f'{rule["record"]}{{function="{function}"}}'), rule


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda r: r["alert"]
)
def test_every_alert_looks_at_something(watched, rule):
    """Each side of each comparison has data, whether or not it holds."""
    compared = re.sub(r"([<>]|==) (?=\d)", r"\1 bool ", rule["expr"])
    for part in re.split(r"\s(?:and|or|unless on \(\w+\)|unless)\s", compared):
        assert watched[1].query(part), part


def test_nothing_fires_while_all_is_well(watched):
    """But for the budgets of latency: whether they hold is up to the machine."""
    firing = 'ALERTS{alertstate="firing",alertname!~"LatencyBudgetBurns.*"}'
    assert watched[1].query(firing) == []


def test_a_function_that_is_killed_raises_the_alert(watched):
    functions, server, _ = watched
    functions["rerank"].process.kill()
    server.wait_for(FIRING)


def test_names_in_the_files_are_those_of_the_functions(watched):
    known = {
        sample
        for name, family in families(watched[0]["predict"].url).items()
        for sample in (name, f"{name}_total", f"{name}_bucket", f"{name}_sum", f"{name}_count")
    }
    expressions = dashboard() + [rule["expr"] for rule in rules()]
    used = set(re.findall(r"\b[a-z]+_[a-z_]+\b(?=[{\[ ])", " ".join(expressions)))
    used -= {"histogram_quantile", "label_values", "min_over_time"}
    assert len(used) > 20
    recorded = {part for rule in rules() for part in rule.get("record", "").split(":")}
    assert used - known - recorded == set()
    readme = (ROOT / "README.md").read_text()
    for name, family in families(watched[0]["predict"].url).items():
        name = f"{name}_total" if family.type == "counter" else name
        assert f"`{name}" in readme or name.startswith("process_"), f"the README lacks {name}"


def test_every_alert_has_its_paragraph():
    runbook = (FILES / "RUNBOOK.md").read_text()
    alerts = [rule for rule in rules() if "alert" in rule]
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == [rule["alert"] for rule in alerts]
    for rule in alerts:
        assert rule["annotations"]["runbook_url"].endswith(f"RUNBOOK.md#{rule['alert'].lower()}")


@pytest.mark.parametrize(
    "command",
    [["check", "rules", FILES / "rules.yml"]]
    + [["test", "rules", ROOT / "tests" / "infra" / "alerts.yml"]],
)
def test_promtool_is_content(command):
    result = subprocess.run(
        [shutil.which("promtool"), *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
