"""Cold starts against Python with ONNX Runtime, and against the FastAPI service that ours replaces.

    tests/bench cold [--quick] [--models bundled] [--skip-failed]

Each contestant is a process that is started, timed from `exec` to its first right answer, and ended,
in turns with all others (A/B/A/B). Pilots first choose the best settings of the peers. Ours takes
its model from a warm cache, from a packed folder, and from S3 on loopback, as fast as it is and at
400 Mbit/s. A restricted run (`--quick`, or a choice of models) overwrites neither cold.md nor
cold.svg.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .lab import cold_report, contestants, engines, models, object_store, processes, stages, starts
from .lab.cold_results import Results, Row

HERE = Path(__file__).resolve().parent
BUNDLED, DISTILBERT = "bundled", "DistilBERT"


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    models: tuple[str, ...]
    rounds: int
    pilot_starts: int
    # Otherwise the service has one worker with one thread.
    pilots_fastapi: bool
    skip_failed: bool
    is_whole: bool


def main():
    plan = read_arguments()
    results = Results()
    if missing := contestants.build() + engines.build_limit():
        sys.exit("\n".join(missing))
    results.memory_bytes_per_s = engines.measure_limit(os.cpu_count())["bytes_per_s"]
    results.exec_ms = starts.exec_ms()
    say("models")
    for model in models.write_models():
        if model.name in plan.models:
            Comparison(plan, results, model).run()
    table = cold_report.table(results, plan)
    print(table)
    if plan.is_whole:
        (HERE / "cold.md").write_text(table, encoding="utf-8")
        ours = [row for row in results.rows if row.contestant.name in contestants.OURS]
        (HERE / "cold.svg").write_text(stages.draw(ours), encoding="utf-8")
    print(json.dumps(summarize(results, plan)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench cold")
    parser.add_argument("--quick", action="store_true", help="less than 3 minutes: fewer starts")
    parser.add_argument("--models", help=f"some of {BUNDLED},{DISTILBERT}")
    parser.add_argument("--skip-failed", action="store_true", help="list what fails, and go on")
    args = parser.parse_args()
    chosen = args.models.split(",") if args.models else [BUNDLED, DISTILBERT]
    if unknown := set(chosen) - {BUNDLED, DISTILBERT}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return Plan(
        models=tuple(chosen),
        rounds=5 if args.quick else 21,
        pilot_starts=2 if args.quick else 3,
        pilots_fastapi=not args.quick,
        skip_failed=args.skip_failed,
        is_whole=not (args.quick or args.models),
    )


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def note_failures(plan, results, failures):
    """Ends the run, unless it was asked to go on and list them."""
    if failures and not plan.skip_failed:
        sys.exit("\n".join(failures))
    for failure in failures:
        say(f"FAILED: {failure}")
        results.failures.append(failure)


@dataclass(frozen=True)
class Comparison:
    """All contestants, with one model."""

    plan: Plan
    results: Results
    model: models.Model

    def run(self):
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cold-"))
            packed = contestants.pack(self.model)
            stores = [
                stack.enter_context(self.object_store(mbit_per_s))
                for mbit_per_s in (None, contestants.SLOW_MBIT_PER_S)
            ]
            ours = list(contestants.ours(self.model, cache, packed, stores))
            peers = [self.ort(), contestants.ort_plain(self.model), self.fastapi()]
            rows = [row for each in (*ours, *peers) if (row := self.first_start(each))]
            self.results.rows += rows
            for number in range(self.plan.rounds):
                say(f"{self.model.name}: round {number + 1} of {self.plan.rounds}")
                self.take_round(rows, [store.pid for store in stores])
            self.measure_sharing(ours[0])

    def object_store(self, mbit_per_s):
        root = contestants.store_root(self.model)
        return object_store.running(contestants.STORE_BINARY, root, mbit_per_s)

    def answer(self, contestant):
        model = self.model
        return starts.Answer(model.text, model.label, model.score, contestant.tolerance)

    def start(self, contestant):
        with starts.started(contestant.program, self.answer(contestant)) as start:
            return start

    def ort(self):
        return self.pilot(contestants.ORT, dict(contestants.ort_candidates(self.model)))

    def fastapi(self):
        if not self.plan.pilots_fastapi:
            return contestants.fastapi(self.model, num_workers=1, num_threads=1)
        return self.pilot(contestants.FASTAPI, dict(contestants.fastapi_candidates(self.model)))

    def pilot(self, name, candidates):
        """The candidate that starts fastest; all take turns."""
        say(f"{self.model.name}: settings of {name}")
        seen = {settings: [] for settings in candidates}
        for _ in range(1 + self.plan.pilot_starts):
            for settings, candidate in candidates.items():
                seen[settings].append(self.start(candidate).answer_ms)
        # The first start of each brought its files into the page cache.
        medians = {settings: statistics.median(times[1:]) for settings, times in seen.items()}
        best = min(medians, key=medians.get)
        figures = "; ".join(f"{settings} {ms:.0f} ms" for settings, ms in medians.items())
        self.results.settings.append(f"{self.model.name}, {name}: **{best}**. Pilot: {figures}.")
        return candidates[best]

    def first_start(self, contestant):
        """An unmeasured start, which brings files into the page cache; None if it fails."""
        say(f"{self.model.name}: {contestant.name}")
        try:
            start = self.start(contestant)
        except starts.StartError as error:
            failure = f"{self.model.name}: {contestant.name}: {error}"
            note_failures(self.plan, self.results, [failure])
            return None
        if contestant.name == contestants.WARM:
            self.results.packing[self.model.name] = start
        row = Row(self.model.name, contestant, 0.0)
        row.memory_ms = row.weights_bytes / self.results.memory_bytes_per_s * 1e3
        return row

    def take_round(self, rows, store_pids):
        began, used_before = time.monotonic(), _other_cpu_secs(store_pids)
        for row in rows:
            row.starts.append(self.start(row.contestant))
            if row.contestant.store:
                download_ms = row.contestant.store.download_ms(
                    row.contestant.path, row.weights_bytes
                )
                row.downloads_ms.append(download_ms)
        used_secs = _other_cpu_secs(store_pids) - used_before
        self.results.other_cpus.append(max(0.0, used_secs / (time.monotonic() - began)))

    def measure_sharing(self, warm):
        if self.results.row(self.model.name, warm.name):
            shared = starts.shared_bytes(warm.program, self.answer(warm))
            self.results.shared_bytes[self.model.name] = shared


def _other_cpu_secs(store_pids):
    """CPU time used since the machine started, but for the object stores, this process, and those
    it started and saw end."""
    secs = processes.machine_cpu_secs() - processes.cpu_secs(store_pids)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        secs -= usage.ru_utime + usage.ru_stime
    return secs


def summarize(results, plan):
    """The line of JSON; None where something was not measured."""

    def median_ms(model):
        row = results.row(model, contestants.WARM)
        return row and rounded(row.median_ms)

    def vs(peer):
        return rounded(results.speed_ratio(BUNDLED, contestants.WARM, peer))

    slow = [results.row(model, contestants.FROM_SLOW_S3) for model in (BUNDLED, DISTILBERT)]
    warm = results.row(BUNDLED, contestants.WARM)
    return {
        "bench": "cold",
        "whole": plan.is_whole,
        "failures": results.failures,
        "other_cpus": rounded(statistics.median(results.other_cpus)),
        "warm_first_answer_ms": median_ms(BUNDLED),
        "distilbert_first_answer_ms": median_ms(DISTILBERT),
        "vs_ort": vs(contestants.ORT),
        "vs_fastapi": vs(contestants.FASTAPI),
        # The worse of the two models.
        "s3_400mbit_over_transfer": (
            None if None in slow else rounded(max(row.over_floor for row in slow))
        ),
        "rss_over_weights_mb": warm and rounded((warm.resident_bytes - warm.weights_bytes) / 1e6),
    }


def rounded(number):
    return None if number is None else round(number, 3)


if __name__ == "__main__":
    main()
