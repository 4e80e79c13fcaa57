"""`POST /predict` over HTTP against the FastAPI service that ours replaces, and against the same
with ONNX Runtime.

    tests/bench http [--quick] [--parts closed,long,open,sweep,bundled,noop,overload]

All serve the same weights on the same CPUs, which they share with the load generator, and take
turns (A/B/A/B). Pilots first choose the best settings of the peers. A restricted run (`--quick`, or
a choice of parts) overwrites neither http.md nor http.svg.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .lab import engines, http_report, load, models, processes, servers, texts, wrk
from .lab.http_results import Overload, Results
from .lab.load import Traffic
from .lab.servers import FASTAPI, FASTAPI_ORT, OURS

HERE = Path(__file__).resolve().parent

CLOSED, LONG, OPEN, SWEEP = "closed", "long", "open", "sweep"
BUNDLED, NOOP, OVERLOAD = "bundled", "noop", "overload"
PARTS = (CLOSED, LONG, OPEN, SWEEP, BUNDLED, NOOP, OVERLOAD)
# How many callers pilots, the sweep and the line of JSON have.
HEADLINE_CALLERS = 16
# Of the most answers a second in a pilot: from here on, less memory is worth more.
NEARLY_BEST = 0.95
OURS_F32_CALLERS = (1, HEADLINE_CALLERS)
# A batch of long texts takes the slowest seconds.
LONG_WARM_UP_SECS = 5
# Callers that keep the queue of ours full, to see the most it answers.
PEAK_CALLERS = 64
OVERLOAD_FACTOR = 3
HEALTH_RATE = 20
# After overload, before memory is looked at once more.
REST_SECS = 2
NUM_NOOP_TEXTS = texts.BLOCK
NOOP_LOGS = {"a line a request, to a file": {}, "RUST_LOG=warn": {"RUST_LOG": "warn"}}


@dataclass(frozen=True)
class Plan:
    """What is measured, for how long, and how often."""

    parts: tuple[str, ...]
    callers: tuple[int, ...]
    rounds: int
    # Of what is less than the headline.
    few_rounds: int
    secs: float
    long_secs: float
    pilot_secs: float
    overload_secs: float
    batch_sizes: tuple[int, ...]
    # Otherwise one worker with a thread for each CPU.
    pilots_fastapi: bool
    with_f32: bool
    is_whole: bool


def main():
    plan = read_arguments()
    if missing := servers.build() + (engines.build_noop() if NOOP in plan.parts else []):
        sys.exit("\n".join(missing))
    say("models")
    bundled, distilbert = models.write_models()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="bench-http-") as folder:
        bench = Bench(plan, results, Path(folder), distilbert, bundled)
        bench.run()
    table = http_report.table(results, plan)
    print(table)
    if plan.is_whole:
        (HERE / "http.md").write_text(table, encoding="utf-8")
        (HERE / "http.svg").write_text(http_report.chart(results), encoding="utf-8")
    print(json.dumps(summarize(results, plan)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench http")
    parser.add_argument("--quick", action="store_true", help="4 minutes: fewer and shorter runs")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}")
    args = parser.parse_args()
    chosen = args.parts.split(",") if args.parts else PARTS
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    quick = args.quick
    return Plan(
        parts=tuple(chosen),
        callers=(1, 16, 64) if quick else (1, 4, 8, 16, 64),
        rounds=2 if quick else 5,
        few_rounds=1 if quick else 3,
        secs=2 if quick else 4,
        long_secs=8 if quick else 20,
        pilot_secs=2 if quick else 4,
        overload_secs=15 if quick else 60,
        batch_sizes=(1, 8) if quick else (1, 4, 8, 16),
        pilots_fastapi=not quick,
        with_f32=not quick,
        is_whole=not (quick or args.parts),
    )


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmark."""

    def __init__(self, plan, results, folder, distilbert, bundled):
        self.plan = plan
        self.results = results
        self.cache = folder / "cache"
        self.distilbert = distilbert
        self.bundled = bundled
        self.short, self.long, self.noop_texts = (
            folder / f"{name}.jsonl" for name in ("sst2", "long", "noop")
        )
        short = texts.sst2()
        texts.write(short, self.short)
        texts.write(short[:NUM_NOOP_TEXTS], self.noop_texts)
        texts.write(texts.long(), self.long)

    def run(self):
        parts = set(self.plan.parts)
        if parts & {CLOSED, LONG, OPEN, SWEEP, BUNDLED}:
            self.spread = self.choose_spread()
        if parts & {CLOSED, LONG, OPEN, BUNDLED}:
            self.ort_settings = self.choose_ort_settings()
        if parts & {CLOSED, LONG, OPEN}:
            self.compare()
        if SWEEP in parts:
            self.sweep_batch_sizes()
        if BUNDLED in parts:
            self.compare_bundled()
        if NOOP in parts:
            self.measure_noop()
        if OVERLOAD in parts:
            self.overload()

    def choose_spread(self):
        spreads = servers.fastapi_spreads()
        if not self.plan.pilots_fastapi:
            return spreads[0]
        candidates = {each: servers.fastapi(self.distilbert, each) for each in spreads}
        return self.pilot(FASTAPI, candidates)

    def choose_ort_settings(self):
        def pilot(candidates):
            named = {each: servers.fastapi_ort(self.distilbert, each) for each in candidates}
            return self.pilot(FASTAPI_ORT, named)

        return pilot(servers.ort_variations(pilot(servers.ort_spreads())))

    def pilot(self, name, candidates):
        """The settings with which most is answered; of those that do nearly as well, the ones with
        the least memory."""
        say(f"settings of {name}")
        traffic = self.closed(HEADLINE_CALLERS, self.plan.pilot_secs)
        seen = {}
        for settings, server in candidates.items():
            with servers.running(server) as start:
                seen[settings] = load.run(start, traffic)
        enough = NEARLY_BEST * max(each.rps for each in seen.values())
        good = [settings for settings, each in seen.items() if each.rps >= enough]
        best = min(good, key=lambda settings: seen[settings].peak_bytes)
        figures = "; ".join(
            f"{settings}: {each.rps:.0f}/s, P99 {each.latency_ms('p99') or 0:.0f} ms,"
            f" {each.peak_bytes / 1e6:.0f} MB"
            for settings, each in seen.items()
        )
        line = f"{name}: **{best}**. Pilot, {HEADLINE_CALLERS} callers: {figures}."
        say(line)
        self.results.settings.append(line)
        return best

    def closed(self, callers, secs, bodies=None, **rest):
        return Traffic(secs, bodies or self.short, callers=callers, **rest)

    def contestants(self, model):
        return (
            servers.ours(model, self.cache),
            servers.fastapi(model, self.spread),
            servers.fastapi_ort(model, self.ort_settings),
        )

    @contextlib.contextmanager
    def all_running(self, contestants):
        """Starts all; gives what runs by name."""
        with contextlib.ExitStack() as stack:
            starts = {}
            for server in contestants:
                say(f"starting {server.name}")
                starts[server.name] = stack.enter_context(servers.running(server))
            yield starts

    def take_turns(self, part, starts, traffic_by_load, rounds):
        """Each load against each server, round after round."""
        for number in range(rounds):
            for load_name, traffic in traffic_by_load.items():
                say(f"{part}, round {number + 1} of {rounds}: {load_name}")
                for name, start in starts.items():
                    self.results.record(part, load_name, name, load.run(start, traffic))

    def compare(self):
        plan = self.plan
        with self.all_running(self.contestants(self.distilbert)) as starts:
            if CLOSED in plan.parts:
                loads = {
                    callers_name(callers): self.closed(callers, plan.secs)
                    for callers in plan.callers
                }
                self.take_turns(CLOSED, starts, loads, plan.rounds)
            if LONG in plan.parts:
                traffic = self.closed(
                    HEADLINE_CALLERS, plan.long_secs, self.long, warm_up_secs=LONG_WARM_UP_SECS
                )
                loads = {callers_name(HEADLINE_CALLERS): traffic}
                self.take_turns(LONG, starts, loads, plan.few_rounds)
            if OPEN in plan.parts:
                self.compare_open(starts)
        if CLOSED in plan.parts and plan.with_f32:
            self.measure_f32()

    def measure_f32(self):
        """Not in turns with the others: two processes of ours at once would share pages, and each
        would seem smaller."""
        f32 = servers.ours_f32(self.distilbert, self.cache)
        with self.all_running([f32]) as starts:
            loads = {
                callers_name(callers): self.closed(callers, self.plan.secs)
                for callers in OURS_F32_CALLERS
            }
            self.take_turns(CLOSED, starts, loads, self.plan.few_rounds)

    def compare_open(self, starts):
        """At half of what the slowest answers, so that all can; and at 0.7 of what ours does."""
        traffic = self.closed(HEADLINE_CALLERS, self.plan.pilot_secs)
        capacities = {name: load.run(start, traffic).rps for name, start in starts.items()}
        for share, capacity in ((0.5, min(capacities.values())), (0.7, capacities[OURS])):
            rate = max(1, round(share * capacity))
            able = {name: start for name, start in starts.items() if capacities[name] > rate}
            loads = {f"{rate}/s": Traffic(self.plan.secs, self.short, rate=rate)}
            self.take_turns(OPEN, able, loads, self.plan.few_rounds)

    def sweep_batch_sizes(self):
        """Ours and the service with other sizes of batches, as the service was described."""

        def variants(size):
            ours = servers.ours(self.distilbert, self.cache, MAX_BATCH_REQUESTS=str(size))
            yield ours
            yield servers.fastapi(self.distilbert, self.spread, MAX_BATCH_SIZE=str(size))

        with contextlib.ExitStack() as stack:
            running = {
                size: stack.enter_context(self.all_running(variants(size)))
                for size in self.plan.batch_sizes
            }
            traffic = self.closed(HEADLINE_CALLERS, self.plan.secs)
            for _ in range(self.plan.few_rounds):
                for size, starts in running.items():
                    self.take_turns(SWEEP, starts, {f"batches of {size}": traffic}, rounds=1)

    def compare_bundled(self):
        traffic = self.closed(HEADLINE_CALLERS, self.plan.secs)
        with self.all_running(self.contestants(self.bundled)) as starts:
            loads = {callers_name(HEADLINE_CALLERS): traffic}
            self.take_turns(BUNDLED, starts, loads, self.plan.few_rounds)

    def measure_noop(self):
        with contextlib.ExitStack() as stack:
            starts = {
                log: stack.enter_context(
                    servers.running(servers.noop(self.bundled, self.cache, **settings))
                )
                for log, settings in NOOP_LOGS.items()
            }
            for _ in range(self.plan.few_rounds):
                for log, start in starts.items():
                    say(f"{NOOP}: {log}")
                    seen = wrk.run(start, self.noop_texts, round(self.plan.secs) + 1)
                    self.results.noop.setdefault(log, []).append(seen)

    def overload(self):
        plan = self.plan
        with servers.running(servers.ours(self.distilbert, self.cache)) as start:
            say(f"{OVERLOAD}: the most it answers")
            peak = load.run(start, self.closed(PEAK_CALLERS, 2 * plan.secs))
            before_bytes = processes.memory(processes.tree(start.pid))
            rate = OVERLOAD_FACTOR * peak.rps
            say(f"{OVERLOAD}: {rate:.0f}/s for {plan.overload_secs} s")
            traffic = Traffic(plan.overload_secs, self.short, rate=rate)
            health = Traffic(plan.overload_secs, rate=HEALTH_RATE)
            with load.generator(start, health) as probe:
                seen = load.run(start, traffic)
                probe.wait_for("measuring")
                probe.wait_for("measured")
                health_seen = probe.report()
            time.sleep(REST_SECS)
            rest_bytes = processes.memory(processes.tree(start.pid))
        self.results.overload = Overload(
            peak_rps=peak.rps,
            rate=rate,
            seen=seen,
            health=health_seen,
            before_bytes=before_bytes,
            rest_bytes=rest_bytes,
        )


def callers_name(callers):
    return "1 caller" if callers == 1 else f"{callers} callers"


def summarize(results, plan):
    """The line of JSON: ratios above 1 mean ours is better; None where nothing was measured."""
    headline = (CLOSED, callers_name(HEADLINE_CALLERS), OURS)
    noop = results.noop.get(next(iter(NOOP_LOGS)))
    overload = results.overload
    refused_ms = overload and overload.refused_ms
    health_ms = overload and overload.health["ok_ms"]
    cells = results.cells.values()
    return {
        "bench": "http",
        "whole": plan.is_whole,
        "failed_requests": sum(cell.num_failed for cell in cells),
        "other_cpus": rounded(statistics.median(results.other_cpus() or [0.0])),
        "rps_vs_fastapi_16": rounded(results.rps_ratio(*headline, FASTAPI)),
        "p99_vs_fastapi_16": rounded(results.latency_ratio(*headline, FASTAPI, "p99")),
        "memory_vs_fastapi": rounded(results.memory_ratio(CLOSED, OURS, FASTAPI)),
        "rps_vs_fastapi_ort_16": rounded(results.rps_ratio(*headline, FASTAPI_ORT)),
        "p99_vs_fastapi_ort_16": rounded(results.latency_ratio(*headline, FASTAPI_ORT, "p99")),
        "memory_vs_fastapi_ort": rounded(results.memory_ratio(CLOSED, OURS, FASTAPI_ORT)),
        "overload_goodput_share": rounded(overload and overload.goodput_share),
        "overload_refusal_p99_ms": rounded(refused_ms and refused_ms["p99"]),
        "overload_memory_growth_share": rounded(overload and overload.memory_growth_share),
        "overload_later_growth_share": rounded(overload and overload.later_growth_share),
        "overload_bad_answers": overload and http_report.num_bad_answers(overload),
        "health_p99_ms": rounded(health_ms and health_ms["p99"]),
        "noop_us": rounded(noop and statistics.median(seen.server_us for seen in noop)),
        "noop_rps": rounded(noop and statistics.median(seen.rps for seen in noop)),
    }


def rounded(number):
    return None if number is None else round(number, 3)


if __name__ == "__main__":
    main()
