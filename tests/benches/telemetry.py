"""What it costs to be seen: the same requests without telemetry, and with ever more of it.

    tests/bench telemetry [--quick]

`predict` answers with its own model, and with an engine that answers zeros at once. Each runs four
times: without a line of the log; with a line a request; scraped every second as well; and with the
spans of all requests sent by OTLP as well. All servers run at once and take turns in random order, so
that one at a time has anything to do; a round compares each with the one without telemetry.
"""

import argparse
import contextlib
import http.server
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .lab import contestants, engines, report, texts, wrk
from .lab.results import three_digits
from .lab.serving import Running, serving

HERE = Path(__file__).resolve().parent

GOAL_PERCENT = 3
# How many rounds, and how many seconds of each run.
ROUNDS, QUICK_ROUNDS = (30, 3), (5, 2)
WARM_UP_SECS = 2
SCRAPE_SECS = 1
NOTHING, LINES, SCRAPED, TRACED = "nothing", "lines", "lines, scrapes", "lines, scrapes, traces"
MODEL, NOOP = "its model", "an engine that answers at once"
BINARIES = {MODEL: contestants.PREDICT, NOOP: engines.NOOP}
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Setting:
    """A server, and whether it is scraped while it is measured."""

    engine: str
    telemetry: str
    server: Running

    @property
    def is_scraped(self):
        return self.telemetry in (SCRAPED, TRACED)


@dataclass(frozen=True)
class Interval:
    """A mean, and where it is with 95% confidence."""

    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:.2f} [{self.low:.2f}–{self.high:.2f}]"


class Results:
    """What was seen, by engine and telemetry."""

    def __init__(self, settings, rounds, secs):
        self.rounds, self.secs = rounds, secs
        self.runs = {(each.engine, each.telemetry): [] for each in settings}
        self.dropped = {}

    def median(self, key, of):
        return statistics.median(of(run) for run in self.runs[key])

    def cost_percent(self, key):
        """How many requests a second are lost to telemetry, of 100."""
        return interval(100 * (1 - run.rps / base.rps) for run, base in self.pairs(key))

    def added_us(self, key):
        """CPU time of the server that a request takes more."""
        return interval(run.server_us - base.server_us for run, base in self.pairs(key))

    def pairs(self, key):
        return zip(self.runs[key], self.runs[key[0], NOTHING], strict=True)


def interval(values):
    """By the bootstrap: means of as many rounds, drawn again and again."""
    values = list(values)
    draw = random.Random(0)
    means = sorted(
        statistics.fmean(draw.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES)
    )
    low, high = means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES)]
    return Interval(statistics.fmean(values), low, high)


def main():
    rounds, secs, is_whole = read_arguments()
    if missing := [*contestants.build_predict(), *engines.build_noop()]:
        sys.exit("\n".join(missing))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-telemetry-")))
        bodies = folder / "bodies.jsonl"
        texts.write(texts.sst2()[: texts.BLOCK], bodies)
        collector_url = stack.enter_context(collecting())
        settings = [
            Setting(engine, telemetry, stack.enter_context(running(engine, environment, folder)))
            for engine in BINARIES
            for telemetry, environment in environments(collector_url).items()
        ]
        results = Results(settings, rounds, secs)
        for setting in settings:
            wrk.run(setting.server, bodies, WARM_UP_SECS)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for setting in random.sample(settings, len(settings)):
                with scraping(setting.server, setting.is_scraped):
                    run = wrk.run(setting.server, bodies, secs)
                results.runs[setting.engine, setting.telemetry].append(run)
        for setting in settings:
            if setting.telemetry == TRACED:
                results.dropped[setting.engine] = dropped_spans(setting.server)
    table = table_of(results)
    print(table)
    if is_whole:
        (HERE / "telemetry.md").write_text(table, encoding="utf-8")
    print(json.dumps(summarize(results, is_whole)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench telemetry")
    parser.add_argument("--quick", action="store_true", help="2 minutes: fewer, shorter rounds")
    is_quick = parser.parse_args().quick
    return *(QUICK_ROUNDS if is_quick else ROUNDS), not is_quick


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def environments(collector_url):
    lines = {"RUST_LOG": "info", "LOG_FORMAT": "json"}
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector_url}
    return {NOTHING: {}, LINES: lines, SCRAPED: lines, TRACED: lines | traces}


@contextlib.contextmanager
def running(engine, environment, folder):
    """The function, whose log is a file as that of a container is."""
    model = contestants.ROOT / "functions" / "predict" / "model"
    cache = {"CACHE_DIR": str(folder / "cache")}
    with (
        (folder / "log").open("a") as log,
        serving(BINARIES[engine], log, MODEL_URI=str(model), **cache, **environment) as server,
    ):
        yield server


@contextlib.contextmanager
def collecting():
    """A collector that reads what it is sent, and keeps nothing; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def scraping(server, is_scraped):
    """Reads the page of metrics every second while the block lasts."""
    stop = threading.Event()

    def scrape():
        while not stop.wait(SCRAPE_SECS / 2):
            metrics(server)
            stop.wait(SCRAPE_SECS / 2)

    thread = threading.Thread(target=scrape)
    if is_scraped:
        thread.start()
    yield
    stop.set()
    if is_scraped:
        thread.join()


def metrics(server):
    with urllib.request.urlopen(f"{server.url}/metrics") as page:
        return page.read().decode()


def dropped_spans(server):
    """Of 100 that it made: five a request, and those of batches are not many more."""
    numbers = {}
    for line in metrics(server).splitlines():
        name, _, number = line.rpartition(" ")
        numbers[name] = number
    made = 5 * float(numbers['http_requests_total{method="POST",route="/predict",status="200"}'])
    return 100 * float(numbers["spans_dropped_total"]) / made


def table_of(results):
    date = time.strftime("%Y-%m-%d", time.gmtime())
    columns = (
        "answers with",
        "telemetry",
        "requests/s",
        "% lost to it [95%]",
        "CPU µs",
        "more [95%]",
        "P99 ms",
        "failed",
        "% of spans dropped",
    )
    lines = [
        "# What telemetry costs",
        "",
        f"- {date}, sanderling {report.revision()}, written by `tests/bench telemetry`",
        report.machine(),
        method(results),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row(results, key))} |" for key in results.runs),
    ]
    return "\n".join(lines) + "\n"


def method(results):
    return (
        f"- {wrk.version()}; {results.rounds} rounds of {results.secs} s of each, in random order."
        " What is lost, and what is more, is the mean over rounds of the difference to the run"
        " without telemetry, with its confidence interval by bootstrap; other figures are medians."
        f" One thread of wrk keeps {wrk.CONNECTIONS} connections busy, on the same CPUs; the"
        " collector and who scrapes are one process of Python there. CPU time is that of the"
        " server's process for a request."
    )


def row(results, key):
    engine, telemetry = key
    is_base, is_traced = telemetry == NOTHING, telemetry == TRACED
    return (
        engine,
        telemetry,
        three_digits(results.median(key, lambda run: run.rps)),
        "" if is_base else str(results.cost_percent(key)),
        three_digits(results.median(key, lambda run: run.server_us)),
        "" if is_base else str(results.added_us(key)),
        three_digits(results.median(key, lambda run: run.p99_ms)),
        str(sum(run.num_failed for run in results.runs[key])),
        f"{results.dropped[engine]:.1f}" if is_traced else "",
    )


def summarize(results, is_whole):
    """The line of JSON."""
    cost = results.cost_percent((MODEL, TRACED))
    return {
        "bench": "telemetry",
        "whole": is_whole,
        "failed_requests": sum(run.num_failed for runs in results.runs.values() for run in runs),
        "rps_cost_percent": round(cost.mean, 2),
        "rps_cost_percent_95": [round(cost.low, 2), round(cost.high, 2)],
        "rps_cost_percent_goal": GOAL_PERCENT,
        "cpu_us_added_noop": {
            telemetry: round(results.added_us((NOOP, telemetry)).mean, 2)
            for telemetry in (LINES, SCRAPED, TRACED)
        },
        "spans_dropped_percent": round(results.dropped[MODEL], 2),
    }


if __name__ == "__main__":
    main()
