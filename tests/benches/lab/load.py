"""Runs the load generator (peers/src/bin/load.rs) against a server, and watches both."""

import contextlib
import functools
import json
import os
import select
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .engines import LOAD

SAMPLE_SECS = 1.0
# Beyond the time that the generator has for itself.
PATIENCE_SECS = 60
TIMEOUT_MS = 30_000
EXPECTED = '"score"'
REFUSALS = ("429", "503")


class LoadError(Exception):
    """A generator that failed or hung."""


@dataclass(frozen=True)
class Traffic:
    """What is sent: a closed loop of callers, or an open one at a rate."""

    secs: float
    # A file of bodies for `POST /predict`; without one, `GET /health`.
    bodies: Path | None = None
    callers: int = 0
    rate: float = 0.0
    warm_up_secs: float = 1.0
    # Each so many requests, one leaves without its answer.
    hang_up_every: int = 0
    # Of one thread each; all of them send as much.
    num_generators: int = 1
    binary: Path = LOAD

    def command(self, port):
        path = "predict" if self.bodies else "health"
        options = {
            "secs": self.secs,
            "warm-up-secs": self.warm_up_secs,
            "timeout-ms": TIMEOUT_MS,
            "hang-up-every": self.hang_up_every,
        }
        options |= {"callers": self.callers} if self.callers else {"rate": self.rate}
        if self.bodies:
            options |= {"bodies": self.bodies, "expect": EXPECTED}
        words = (str(word) for name, value in options.items() for word in (f"--{name}", value))
        return [self.binary, f"http://127.0.0.1:{port}/{path}", *words]


@dataclass(frozen=True)
class Seen:
    """What one run saw of a server, and what it took meanwhile."""

    # What the generator reports.
    report: dict
    # CPUs that the server, the generator and everybody else kept busy.
    server_cpus: float
    load_cpus: float
    other_cpus: float
    # Largest proportional set size of the server's processes together, of a sample a second.
    peak_bytes: int
    # The first of them, when measuring began, and the last.
    first_bytes: int
    last_bytes: int

    @property
    def rps(self):
        return self.report["ok_per_s"]

    @property
    def num_refused(self):
        return sum(self.report["answers"].get(status, 0) for status in REFUSALS)

    @property
    def num_failed(self):
        """Requests with neither a right answer nor a refusal."""
        bad = sum(
            count
            for status, count in self.report["answers"].items()
            if status not in ("200", *REFUSALS)
        )
        return bad + self.report["wrong"] + sum(self.report["errors"].values())

    def latency_ms(self, which):
        """`p50`, `p90`, `p99` or `max` of the right answers; None without any."""
        return self.report["ok_ms"] and self.report["ok_ms"][which]


def run(start, traffic):
    """Sends `traffic` to a server that was started."""
    pids = processes.tree(start.pid)
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(generator(start, traffic)) for _ in range(traffic.num_generators)
        ]
        for load in loads:
            load.wait_for("measuring")
        memory = [processes.memory(pids)]
        before, began = _cpu_secs(pids), time.monotonic()
        while not loads[0].has_said("measured", SAMPLE_SECS):
            memory.append(processes.memory(pids))
        secs, after = time.monotonic() - began, _cpu_secs(pids)
        memory.append(processes.memory(pids))
        for load in loads[1:]:
            load.wait_for("measured")
        report = functools.reduce(_joined, [load.report() for load in loads])
    load_cpus = report["cpu_secs"] / report["secs"]
    server_cpus, machine_cpus, own_cpus = (
        (now - then) / secs for then, now in zip(before, after, strict=True)
    )
    return Seen(
        report=report,
        server_cpus=server_cpus,
        load_cpus=load_cpus,
        other_cpus=max(0.0, machine_cpus - server_cpus - own_cpus - load_cpus),
        peak_bytes=max(memory),
        first_bytes=memory[0],
        last_bytes=memory[-1],
    )


def _joined(report, other):
    """One report of two generators that ran at once; of their latencies, the longer ones."""
    sums = {name: report[name] + other[name] for name in ("ok_per_s", "wrong", "cpu_secs")}
    counts = {
        name: dict(Counter(report[name]) + Counter(other[name])) for name in ("answers", "errors")
    }
    times = [each["ok_ms"] for each in (report, other)]
    longer = all(times) and {which: max(each[which] for each in times) for which in times[0]}
    return report | sums | counts | {"ok_ms": longer or None}


def _cpu_secs(pids):
    """Used so far by these processes, by all, and by this one."""
    return processes.cpu_secs(pids), processes.machine_cpu_secs(), time.process_time()


@contextlib.contextmanager
def generator(start, traffic):
    """A generator that runs; it is ended with the block."""
    process = subprocess.Popen(traffic.command(start.port), stdout=subprocess.PIPE, bufsize=0)
    try:
        yield Generator(process, traffic)
    finally:
        process.kill()
        process.communicate()


class Generator:
    """What a generator says, line by line."""

    def __init__(self, process, traffic):
        self._process = process
        self._patience_secs = traffic.warm_up_secs + traffic.secs + PATIENCE_SECS
        self._read = b""

    def has_said(self, line, timeout_secs):
        """Whether its next line came in time; it must be `line`."""
        said = self._line(timeout_secs)
        if said not in (None, line):
            raise LoadError(f"{said!r} instead of {line!r}")
        return said is not None

    def wait_for(self, line):
        if not self.has_said(line, self._patience_secs):
            raise LoadError(f"no {line!r}")

    def report(self):
        """What it saw, once it has ended."""
        said = self._line(self._patience_secs)
        if said is None:
            raise LoadError("no report")
        return json.loads(said)

    def _line(self, timeout_secs):
        deadline = time.monotonic() + timeout_secs
        while b"\n" not in self._read:
            left_secs = deadline - time.monotonic()
            if left_secs <= 0 or not select.select([self._process.stdout], [], [], left_secs)[0]:
                return None
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise LoadError("it ended early")
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()
