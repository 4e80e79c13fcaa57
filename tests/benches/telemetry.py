"""What it costs to be seen: the same requests without telemetry, and with ever more of it.

    tests/bench telemetry [--quick]

`predict` answers with an engine that answers zeros at once: without a line of the log; with a line a
request; scraped every second as well; and with the spans of all requests sent by OTLP as well. With its
own model, of which telemetry is a small part, it runs without any and with all. All count for their page
of metrics. All servers run at once and take turns, so that one at a time has anything to do: in random
order, and then in the opposite one, so that a machine that gets slower does so for all. A turn compares
each with the one without telemetry.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .lab import collector, contestants, engines, report, texts, wrk
from .lab.results import three_digits
from .lab.serving import Running, serving

HERE = Path(__file__).resolve().parent

GOAL_PERCENT = 3
# How many rounds. Of one with the engine that answers at once there are some with the model.
ROUNDS, QUICK_ROUNDS = 30, 5
RUN_SECS = 1
WARM_UP_SECS = 2
# In which a server ends what callers have left, before the next one has its turn.
PAUSE_SECS = 0.2
SCRAPE_SECS = 1
NOTHING, LINES, SCRAPED, TRACED = "nothing", "lines", "lines, scrapes", "lines, scrapes, traces"
MODEL, NOOP = "its model", "an engine that answers at once"
ARMS = {MODEL: (NOTHING, TRACED), NOOP: (NOTHING, LINES, SCRAPED, TRACED)}
TURNS = {MODEL: 3, NOOP: 1}
BINARIES = {MODEL: contestants.PREDICT, NOOP: engines.NOOP}
# Few where an answer takes long: what a run ends amidst is not counted.
CONNECTIONS = {MODEL: 16, NOOP: wrk.CONNECTIONS}
# Of a request with one text, without those of its batch.
SPANS = 5
MODEL_FOLDER = contestants.ROOT / "functions" / "predict" / "model"
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Setting:
    """A server, and what sees it while it is measured."""

    engine: str
    telemetry: str
    server: Running
    collector: Running | None

    @property
    def key(self):
        return self.engine, self.telemetry

    @property
    def is_scraped(self):
        return self.telemetry in (SCRAPED, TRACED)


@dataclass(frozen=True)
class Spans:
    """What became of the spans of a server."""

    received: collector.Received
    dropped: int
    made: int

    @property
    def dropped_percent(self):
        return 100 * self.dropped / self.made


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

    def __init__(self, settings, rounds):
        self.rounds = rounds
        self.runs = {setting.key: [] for setting in settings}
        # By engine.
        self.spans = {}

    def median(self, key, of):
        return statistics.median(of(run) for run in self.runs[key])

    def cost_percent(self, key):
        """How many requests a second are lost to telemetry, of 100."""
        return interval(
            100 * (1 - rps / base) for rps, base in self.turns(key, lambda run: run.rps)
        )

    def added_us(self, key):
        """CPU time of the server that a request takes more."""
        return interval(us - base for us, base in self.turns(key, lambda run: run.server_us))

    def turns(self, key, of):
        """Of each turn, the mean of its two runs with telemetry, and that without."""

        def means(key):
            values = [of(run) for run in self.runs[key]]
            return map(statistics.fmean, zip(values[::2], values[1::2], strict=True))

        return zip(means(key), means((key[0], NOTHING)), strict=True)

    def collector_us(self, key):
        """CPU time for a request, over all runs: one alone takes few ticks of the clock."""
        used_us = sum(run.beside_us * run.num_requests for run in self.runs[key])
        return used_us / sum(run.num_requests for run in self.runs[key])

    def other_cpus(self):
        return [run.other_cpus for runs in self.runs.values() for run in runs]


def interval(values):
    """By the bootstrap: means of as many turns, drawn again and again."""
    values = list(values)
    draw = random.Random(0)
    means = sorted(
        statistics.fmean(draw.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES)
    )
    low, high = means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES)]
    return Interval(statistics.fmean(values), low, high)


def main():
    is_whole = read_arguments()
    rounds = ROUNDS if is_whole else QUICK_ROUNDS
    built = contestants.build_predict(), engines.build_noop(), engines.build_collector()
    if missing := [binary for binaries in built for binary in binaries]:
        sys.exit("\n".join(missing))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-telemetry-")))
        bodies = folder / "bodies.jsonl"
        texts.write(texts.sst2()[: texts.BLOCK], bodies)
        settings = [
            stack.enter_context(running(engine, telemetry, folder))
            for engine, arms in ARMS.items()
            for telemetry in arms
        ]
        results = Results(settings, rounds)
        for setting in settings:
            measure(setting, bodies, WARM_UP_SECS)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for engine, num_turns in TURNS.items():
                arms = [setting for setting in settings if setting.engine == engine]
                for _ in range(num_turns):
                    order = random.sample(arms, len(arms))
                    for setting in (*order, *reversed(order)):
                        results.runs[setting.key].append(measure(setting, bodies, RUN_SECS))
            # A whole run writes gigabytes.
            os.truncate(folder / "log", 0)
        for setting in settings:
            if setting.collector:
                results.spans[setting.engine] = spans_of(setting)
    table = table_of(results)
    print(table)
    if is_whole:
        (HERE / "telemetry.md").write_text(table, encoding="utf-8")
    print(json.dumps(summarize(results, is_whole)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench telemetry")
    parser.add_argument("--quick", action="store_true", help="3 minutes: fewer rounds")
    return not parser.parse_args().quick


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def running(engine, telemetry, folder):
    """The function, whose log is a file as that of a container is."""
    environment = {"MODEL_URI": str(MODEL_FOLDER), "CACHE_DIR": str(folder / "cache")}
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(collector.running()) if telemetry == TRACED else None
        if telemetry != NOTHING:
            environment |= {"RUST_LOG": "info", "LOG_FORMAT": "json"}
        if receiver:
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url
        log = stack.enter_context((folder / "log").open("a"))
        server = stack.enter_context(serving(BINARIES[engine], log, **environment))
        yield Setting(engine, telemetry, server, receiver)


def measure(setting, bodies, secs):
    """One run."""
    time.sleep(PAUSE_SECS)
    connections = CONNECTIONS[setting.engine]
    beside = [setting.collector.pid] if setting.collector else []
    with scraping(setting.server, setting.is_scraped):
        return wrk.run(setting.server, bodies, secs, connections=connections, beside=beside)


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


def spans_of(setting):
    numbers = {}
    for line in metrics(setting.server).splitlines():
        name, _, number = line.rpartition(" ")
        numbers[name] = number
    answered = int(numbers['http_requests_total{method="POST",route="/predict",status="200"}'])
    dropped = int(numbers["spans_dropped_total"])
    return Spans(collector.received(setting.collector), dropped, SPANS * answered)


def table_of(results):
    date = time.strftime("%Y-%m-%d", time.gmtime())
    others = results.other_cpus()
    columns = (
        "answers with",
        "telemetry",
        "requests/s",
        "% lost to it [95%]",
        "CPU µs",
        "more [95%]",
        "CPU µs, collector",
        "P99 ms",
        "failed",
    )
    lines = [
        "# What telemetry costs",
        "",
        f"- {date}, sanderling {report.revision()}, written by `tests/bench telemetry`",
        report.machine(),
        method(results),
        *(f"- Answers with {engine}: {told(spans)}" for engine, spans in results.spans.items()),
        f"- CPUs that others used: median {statistics.median(others):.2f}, most {max(others):.2f}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row(results, key))} |" for key in results.runs),
    ]
    return "\n".join(lines) + "\n"


def method(results):
    connections = " and ".join(f"{number} for {engine}" for engine, number in CONNECTIONS.items())
    turns = " and ".join(f"{number} with {engine}" for engine, number in TURNS.items())
    return (
        f"- {wrk.version()}; {results.rounds} rounds; turns in each: {turns}. In a turn each server"
        f" runs twice for {RUN_SECS} s, in random order and in the opposite one. What is lost, and"
        " what is more, is the mean over turns of the difference to that without telemetry, with its"
        " confidence interval by bootstrap; other figures are medians."
        f" One thread of wrk keeps connections busy, {connections}, on the same CPUs. CPU time is"
        " that of a process for a request. A collector is a process that only reads, on the same CPUs"
        " as well: its time is in what is lost, but not in that of the server."
    )


def told(spans):
    return (
        f"{spans.received.requests:,} requests to the collector, {spans.received.bytes / 1e6:.1f} MB;"
        f" {spans.dropped:,} of {spans.made:,} spans dropped, {spans.dropped_percent:.1f}%."
    )


def row(results, key):
    def median(of):
        return three_digits(results.median(key, of))

    engine, telemetry = key
    is_base, is_traced = telemetry == NOTHING, telemetry == TRACED
    return (
        engine,
        telemetry,
        median(lambda run: run.rps),
        "" if is_base else str(results.cost_percent(key)),
        median(lambda run: run.server_us),
        "" if is_base else str(results.added_us(key)),
        three_digits(results.collector_us(key)) if is_traced else "",
        median(lambda run: run.p99_ms),
        str(sum(run.num_failed for run in results.runs[key])),
    )


def summarize(results, is_whole):
    """The line of JSON."""
    cost, added = results.cost_percent((MODEL, TRACED)), results.added_us((MODEL, TRACED))
    spans = results.spans[MODEL]
    return {
        "bench": "telemetry",
        "whole": is_whole,
        "failed_requests": sum(run.num_failed for runs in results.runs.values() for run in runs),
        "rps_cost_percent": round(cost.mean, 2),
        "rps_cost_percent_95": [round(cost.low, 2), round(cost.high, 2)],
        "rps_cost_goal_percent": GOAL_PERCENT,
        "cpu_us_added": round(added.mean, 2),
        "cpu_us_added_95": [round(added.low, 2), round(added.high, 2)],
        "cpu_us_added_noop": {
            telemetry: round(results.added_us((NOOP, telemetry)).mean, 2)
            for telemetry in (LINES, SCRAPED, TRACED)
        },
        "cpu_us_collector": round(results.collector_us((MODEL, TRACED)), 2),
        "exports": spans.received.requests,
        "exported_bytes": spans.received.bytes,
        "spans_dropped": spans.dropped,
        "spans_dropped_percent": round(spans.dropped_percent, 2),
    }


if __name__ == "__main__":
    main()
