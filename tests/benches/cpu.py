"""CPU inference against ONNX Runtime, tract, rten and candle, and against the machine's own limit.

    tests/bench cpu [--quick] [--shapes 1x16,mixed] [--models DistilBERT] [--threads 2]
                    [--skip-failed]

Each workload is measured A/B/A/B over all engines, each in a process of its own. ONNX Runtime first
runs a pilot over its possible settings, and goes on with the fastest. A run that is restricted
(`--quick`, or a choice of shapes, models or threads) overwrites neither cpu.md nor cpu.svg.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from .lab import chart, encoders, engines, report
from .lab.ab import Worker, WorkerError, measure, spinning_process
from .lab.results import ORT_F32, ORT_INT8, OURS, Cell, Results, Workload, limit_ms
from .lab.workload import equal_lengths, mixed_lengths

HERE = Path(__file__).resolve().parent

SHAPES = ((1, 16), (1, 32), (1, 64), (1, 128), (8, 32), (8, 128), (1, 512), (32, 128))
BUSY_SHAPES = ((1, 32), (8, 32))
NUM_MIXED_BATCHES, MIXED_BATCH_SIZE = 16, 8
# Beside a spinning process only this is measured: the headline's model and number of threads, which
# are also those of the line of JSON.
HEADLINE_MODEL, HEADLINE_THREADS = encoders.DISTILBERT, 2
# Answers are compared on texts of different lengths, alone and together.
AGREEMENT_WORKLOAD = "5,32,17,9;24;64,64"
# Largest difference of a logit to ONNX Runtime's in f32. Logits are of order one; in int8 ONNX
# Runtime itself is 0.1 away.
TOLERANCES = {"f32": 1e-4, "bf16": 0.05, "int8": 0.3}
# HF Infinity, DistilBERT, batches of one, 2 Ice Lake cores: requests a second by length. Hugging
# Face, "Case Study: Millisecond Latency using Hugging Face Infinity and modern CPUs", 2022.
INFINITY_RPS = {16: 212, 32: 150, 64: 97, 128: 55}


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    models: tuple[encoders.Shape, ...]
    threads: tuple[int, ...]
    workloads: tuple[Workload, ...]
    with_slow_peers: bool
    budget_secs: float
    pilot_secs: float
    min_rounds: int
    skip_failed: bool
    is_whole: bool


def busy(batch_size, seq_len):
    return Workload(f"{batch_size}x{seq_len} busy", ((seq_len,) * batch_size,), is_busy=True)


EQUAL = tuple(Workload(*equal_lengths(*shape)) for shape in SHAPES)
MIXED = Workload("mixed", mixed_lengths(NUM_MIXED_BATCHES, MIXED_BATCH_SIZE))
BUSY = tuple(busy(*shape) for shape in BUSY_SHAPES)


def main():
    plan = read_arguments()
    results = Results()
    note_failures(plan, results, engines.build(plan.with_slow_peers))
    for num_threads in plan.threads:
        say(f"limit of the machine, {num_threads} threads")
        results.limits[num_threads] = engines.measure_limit(num_threads)
    results.call_overhead_us = engines.measure_call_overhead()
    for shape in plan.models:
        say(f"models of the shape of {shape.name}")
        files = engines.write_models(shape)
        for num_threads in plan.threads:
            Comparison(plan, results, shape, files, num_threads).run()
    table = report.table(results, plan)
    print(table)
    if plan.is_whole:
        (HERE / "cpu.md").write_text(table, encoding="utf-8")
        (HERE / "cpu.svg").write_text(drawn(results), encoding="utf-8")
    print(json.dumps(summarize(results, plan)))


def read_arguments():
    models, threads = (encoders.DISTILBERT, encoders.MINILM), (1, 2)
    workloads = (*EQUAL, MIXED, *BUSY)
    parser = argparse.ArgumentParser(prog="tests/bench cpu")
    parser.add_argument(
        "--quick", action="store_true", help="minutes: one model, 2 threads, only ONNX Runtime"
    )
    parser.add_argument("--shapes", help="some of " + ",".join(each.name for each in workloads))
    parser.add_argument("--models", help="some of " + ",".join(each.name for each in models))
    parser.add_argument("--threads", help="some of 1,2")
    parser.add_argument("--skip-failed", action="store_true", help="list what fails, and go on")
    args = parser.parse_args()
    if args.quick:
        models, threads = (HEADLINE_MODEL,), (HEADLINE_THREADS,)

    def chosen(text, known, name_of):
        names = text.split(",") if text else [name_of(each) for each in known]
        if unknown := set(names) - {name_of(each) for each in known}:
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
        return tuple(each for each in known if name_of(each) in names)

    return Plan(
        models=chosen(args.models, models, lambda shape: shape.name),
        threads=chosen(args.threads, threads, str),
        workloads=chosen(args.shapes, workloads, lambda workload: workload.name),
        with_slow_peers=not args.quick,
        budget_secs=3 if args.quick else 12,
        pilot_secs=1 if args.quick else 3,
        min_rounds=2 if args.quick else 5,
        skip_failed=args.skip_failed,
        is_whole=not (args.quick or args.shapes or args.models or args.threads),
    )


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def note_failures(plan, results, failures):
    """Ends the run, unless it was asked to go on and list them."""
    if failures and not plan.skip_failed:
        sys.exit("\n".join(failures))
    for failure in failures:
        if failure not in results.failures:
            say(f"FAILED: {failure}")
            results.failures.append(failure)


@dataclass(frozen=True)
class Comparison:
    """All engines on all workloads, for one model and one number of threads."""

    plan: Plan
    results: Results
    shape: encoders.Shape
    files: engines.Files
    num_threads: int

    @property
    def title(self):
        return f"{self.shape.name}, {self.num_threads} threads"

    def run(self):
        self.run_workloads([each for each in self.plan.workloads if not each.is_busy], EQUAL)
        if (self.shape, self.num_threads) == (HEADLINE_MODEL, HEADLINE_THREADS):
            self.run_workloads([each for each in self.plan.workloads if each.is_busy], BUSY)

    def run_workloads(self, workloads, pilot_from):
        if not workloads:
            return
        pilots = [each for each in pilot_from if each.name.startswith(("1x32", "8x32"))]
        compared = [
            self.pilot(ORT_INT8, "int8", pilots),
            self.pilot(ORT_F32, "f32", pilots),
            *engines.rust_engines(self.files, self.num_threads, self.plan.with_slow_peers),
        ]
        workers = self.start_workers(compared)
        for workload in workloads:
            say(f"{self.title}: {workload.name}")
            timings = self.measure(workers, workload, self.plan.budget_secs, self.plan.min_rounds)
            self.record(compared, workload, timings)
        for worker in workers:
            worker.close()

    def pilot(self, name, precision, workloads):
        """The fastest way to run ONNX Runtime, under `name`."""
        candidates = engines.ort_candidates(precision, self.files, self.num_threads)
        workers = [Worker(each.name, each.command) for each in candidates]
        seen = [self.measure(workers, each, self.plan.pilot_secs, 2) for each in workloads]
        for worker in workers:
            worker.close()
        medians = {
            each.name: [timings[each.name].median_ms for timings in seen] for each in candidates
        }
        best = min(candidates, key=lambda each: statistics.geometric_mean(medians[each.name]))
        figures = "; ".join(
            f"{candidate} {' and '.join(f'{ms:.1f}' for ms in each)} ms"
            for candidate, each in medians.items()
        )
        shapes = " and ".join(each.name for each in workloads)
        settings = f"{self.title}, {name}: **{best.name}**. At {shapes}: {figures}."
        say(settings)
        self.results.ort_settings.append(settings)
        return engines.Engine(name, precision, best.command)

    def start_workers(self, compared):
        """Workers of all engines that start and whose answers are right."""
        reference = self.reference_logits()
        workers = []
        for engine in compared:
            try:
                worker = Worker(engine.name, engine.command, engine.environment)
                self.check_answers(worker, engine, reference)
            except WorkerError as error:
                note_failures(self.plan, self.results, [f"{self.title}: {error}"])
            else:
                workers.append(worker)
        return workers

    def reference_logits(self):
        command = engines.ort_command(self.files.exported, 1, "park")
        worker = Worker("reference", command)
        with worker.awake():
            logits = worker.logits(AGREEMENT_WORKLOAD)
        worker.close()
        return logits

    def check_answers(self, worker, engine, reference):
        with worker.awake():
            logits = worker.logits(AGREEMENT_WORKLOAD)
        difference = max(abs(a - b) for a, b in zip(logits, reference, strict=True))
        if not difference <= TOLERANCES[engine.precision]:
            worker.close()
            raise WorkerError(engine.name, f"answers differ by {difference:.2g}")
        known = self.results.differences.get(engine.name, 0.0)
        self.results.differences[engine.name] = max(known, difference)

    def measure(self, workers, workload, budget_secs, min_rounds):
        if not workload.is_busy:
            return measure(workers, workload.text, budget_secs, min_rounds)
        with spinning_process() as pid:
            return measure(workers, workload.text, budget_secs, min_rounds, ignored_pid=pid)

    def record(self, compared, workload, timings):
        limits = self.results.limits[self.num_threads]
        for engine in compared:
            if engine.name in timings:
                least_ms = limit_ms(self.shape, workload, engine.precision, limits)
                place = (self.shape.name, self.num_threads, workload.name, engine.name)
                self.results.cells.append(Cell(*place, timings[engine.name], least_ms))


def drawn(results):
    place = (HEADLINE_MODEL.name, HEADLINE_THREADS)
    cells = [cell for cell in results.cells if (cell.model, cell.num_threads) == place]
    return chart.draw(f"{HEADLINE_MODEL.name}, {HEADLINE_THREADS} threads", cells, ORT_INT8)


def summarize(results, plan):
    """The line of JSON: ratios above 1 mean we are faster; None where something was not measured."""

    def our_cell(workload, precision="int8"):
        place = (HEADLINE_MODEL.name, HEADLINE_THREADS, workload, OURS[precision])
        return results.cell(*place)

    def ratios(reduce, precision, peer, workloads):
        cells = [our_cell(each.name, precision) for each in workloads]
        return reduced(reduce, [cell and results.speed_ratio(cell, peer) for cell in cells])

    def limit_share(workload):
        cell = our_cell(workload)
        return cell and round(cell.limit_share, 3)

    def over_infinity(seq_len):
        cell = our_cell(f"1x{seq_len}")
        return cell and 1e3 / cell.timings.median_ms / INFINITY_RPS[seq_len]

    mean = statistics.geometric_mean
    return {
        "bench": "cpu",
        "whole": plan.is_whole,
        "failures": results.failures,
        "other_cpus": round(results.other_cpus(), 3),
        "int8_vs_ort_int8_geomean": ratios(mean, "int8", ORT_INT8, EQUAL),
        "int8_vs_ort_int8_min": ratios(min, "int8", ORT_INT8, EQUAL),
        "int8_vs_ort_int8_mixed": ratios(min, "int8", ORT_INT8, [MIXED]),
        "infinity_min": reduced(min, [over_infinity(seq_len) for seq_len in INFINITY_RPS]),
        "bf16_vs_ort_f32_min": ratios(min, "bf16", ORT_F32, EQUAL),
        "f32_vs_ort_f32_min": ratios(min, "f32", ORT_F32, EQUAL),
        "int8_limit_share_32x128": limit_share("32x128"),
        "int8_limit_share_1x16": limit_share("1x16"),
        "int8_vs_ort_int8_busy": ratios(min, "int8", ORT_INT8, BUSY),
    }


def reduced(reduce, values):
    """None if one of `values` is."""
    return None if None in values else round(reduce(values), 3)


if __name__ == "__main__":
    main()
