"""As many requests as fit twenty minutes, of every kind, against one function: does memory grow?

    tests/bench soak [--minutes 20] [--quick]

In cycles: callers who send texts of 3 to 512 tokens and mistakes, some of whom hang up; then more
than the queue holds, so that most are refused; then a rest, in which memory is compared. The
function, with the bundled model and its defaults, logs a line a request into the temporary folder,
a gigabyte in all. Another length than the default overwrites neither soak.md nor soak.svg.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .lab import load, models, processes, servers, soak_report, texts
from .lab.load import Traffic

HERE = Path(__file__).resolve().parent

MINUTES, QUICK_MINUTES = 20.0, 3.0
NUM_CYCLES = 40
# Shares of them: what is not compared, and what is compared with what.
WARM_UP_SHARE, COMPARED_SHARE = 0.2, 0.2
OVERLOAD_SHARE, REST_SECS = 1 / 6, 1.5
CALLERS, OVERLOAD_FACTOR = 16, 3
CAPACITY_SECS = 3
HANG_UP_EVERY = 50
# Of so many bodies in a row, so many are long texts, and so many mistakes.
BLOCK, LONG_IN_BLOCK, MISTAKES_IN_BLOCK = 64, 6, 4
MISTAKES = (
    '{"text": "never ends',
    "[]",
    "{}",
    '{"text": ""}',
    '{"text": 5}',
    '{"text": "a", "txt": "b"}',
    '{"text": "a", "top_k": 0}',
    '{"text": "a", "top_k": 99}',
    json.dumps({"text": "long " * 2000}),
)
# What these, and too many requests, may be answered.
EXPECTED_STATUSES = {"200", "400", "422", *load.REFUSALS}


@dataclass
class Results:
    """All that was found out."""

    minutes: float
    is_whole: bool
    capacity_rps: float = 0.0
    num_requests: int = 0
    num_hang_ups: int = 0
    answers: Counter = field(default_factory=Counter)
    unexpected: Counter = field(default_factory=Counter)
    refusals_without_retry_after: int = 0
    # Once a second, and at the end of each rest.
    samples: list[soak_report.Sample] = field(default_factory=list)
    rests: list[soak_report.Sample] = field(default_factory=list)

    def add(self, report):
        self.num_requests += report["begun"]
        self.num_hang_ups += report["hang_ups"]
        self.answers.update(report["answers"])
        self.refusals_without_retry_after += report["refusals_without_retry_after"]
        self.unexpected.update(report["errors"])
        if report["wrong"]:
            self.unexpected["wrong answer"] += report["wrong"]
        for status, count in report["answers"].items():
            if status not in EXPECTED_STATUSES:
                self.unexpected[status] += count

    def compared(self, kind):
        """Bytes at rest after the warm-up, and at the end."""
        seen = [getattr(rest, kind) for rest in self.rests]
        warm = seen[int(WARM_UP_SHARE * len(seen)) :]
        num_compared = max(1, round(COMPARED_SHARE * len(seen)))
        return statistics.median(warm[:num_compared]), statistics.median(warm[-num_compared:])

    def growth_share(self, kind):
        before, after = self.compared(kind)
        return after / before - 1


def main():
    results = read_arguments()
    if missing := servers.build():
        sys.exit("\n".join(missing))
    say("models")
    bundled, _ = models.write_models()
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
        bodies = Path(folder) / "bodies.jsonl"
        bodies.write_text("".join(f"{body}\n" for body in mixed_bodies()), encoding="ascii")
        with servers.running(servers.ours(bundled, Path(folder) / "cache")) as start:
            soak(results, start, bodies)
    table = soak_report.table(results)
    print(table)
    if results.is_whole:
        (HERE / "soak.md").write_text(table, encoding="utf-8")
        (HERE / "soak.svg").write_text(soak_report.chart(results), encoding="utf-8")
    print(json.dumps(summarize(results)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench soak")
    parser.add_argument("--minutes", type=float, help=f"how long it takes (default {MINUTES:.0f})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MINUTES:.0f} minutes")
    args = parser.parse_args()
    minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    return Results(minutes=minutes, is_whole=minutes == MINUTES)


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def mixed_bodies():
    """The same for every call."""
    short, long, mistakes = iter(texts.sst2()), iter(texts.long()), itertools.cycle(MISTAKES)
    bodies = []
    for place in range(texts.NUM_TEXTS):
        # Spread over the block: no two of a kind are neighbours.
        turn = place % BLOCK
        if turn * LONG_IN_BLOCK % BLOCK < LONG_IN_BLOCK:
            bodies.append(json.dumps({"text": next(long)}))
        elif (turn + BLOCK // 8) * MISTAKES_IN_BLOCK % BLOCK < MISTAKES_IN_BLOCK:
            bodies.append(next(mistakes))
        else:
            bodies.append(json.dumps({"text": next(short), "top_k": 1 + place % 2}))
    return bodies


def soak(results, start, bodies):
    pids = processes.tree(start.pid)
    capacity = load.run(start, Traffic(CAPACITY_SECS, bodies, callers=CALLERS))
    results.add(capacity.report)
    results.capacity_rps = capacity.rps
    began = time.monotonic()
    cycle_secs = results.minutes * 60 / NUM_CYCLES
    overload_secs = OVERLOAD_SHARE * cycle_secs
    with sampling(results.samples, pids, began):
        for number in range(NUM_CYCLES):
            ends = began + (number + 1) * cycle_secs
            mixed_secs = ends - time.monotonic() - overload_secs - REST_SECS
            say(f"cycle {number + 1} of {NUM_CYCLES}: {results.num_requests} requests so far")
            mixed = Traffic(
                max(0.5, mixed_secs),
                bodies,
                callers=CALLERS,
                warm_up_secs=0,
                hang_up_every=HANG_UP_EVERY,
            )
            rate = OVERLOAD_FACTOR * capacity.rps
            overload = Traffic(overload_secs, bodies, rate=rate, warm_up_secs=0)
            for traffic in (mixed, overload):
                results.add(load.run(start, traffic).report)
            time.sleep(REST_SECS)
            results.rests.append(soak_report.Sample.take(pids, began))


@contextlib.contextmanager
def sampling(samples, pids, began):
    """Takes a sample a second inside the block."""
    ended = threading.Event()

    def sample():
        while not ended.wait(1.0):
            samples.append(soak_report.Sample.take(pids, began))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summarize(results):
    """The line of JSON."""
    return {
        "bench": "soak",
        "whole": results.is_whole,
        "requests": results.num_requests,
        "refused": sum(results.answers[status] for status in load.REFUSALS),
        "hang_ups": results.num_hang_ups,
        "unexpected": sum(results.unexpected.values()),
        "refusals_without_retry_after": results.refusals_without_retry_after,
        "memory_growth_share": round(results.growth_share("anonymous_bytes"), 4),
        "pss_growth_share": round(results.growth_share("pss_bytes"), 4),
        "rest_pss_mb": round(results.compared("pss_bytes")[1] / 1e6, 1),
    }


if __name__ == "__main__":
    main()
