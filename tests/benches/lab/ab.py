"""Measures workers against each other in one run: A/B/A/B, one awake at a time, the rest stopped.

A worker is a process that answers lines on stdin with lines on stdout; the protocol is in
peers/src/lib.rs. Turns are short, so what happens to the machine happens to all of them, and what
other processes took of it meanwhile is counted.
"""

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

from . import processes

# torch compiles while it is waited for.
ANSWER_TIMEOUT_SECS = 150
# Of what a worker that ended has said: torch puts advice behind its reason.
LAST_LINES = 6
TURN_SECS = 0.15
MAX_PASSES_PER_TURN = 40


class WorkerError(Exception):
    """A worker that could not start, died, hung, or answered that it failed."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name = name


@dataclass
class Timings:
    """What was seen of one worker on one workload."""

    passes_ms: list[float] = field(default_factory=list)
    # For each turn: how many CPUs processes outside the measurement kept busy.
    other_cpus: list[float] = field(default_factory=list)

    @property
    def median_ms(self):
        return statistics.median(self.passes_ms)

    def percentile_ms(self, share):
        ordered = sorted(self.passes_ms)
        return ordered[round(share * (len(ordered) - 1))]


class Worker:
    """A process that has loaded a model, stopped unless it is its turn."""

    def __init__(self, name, command, environment=None):
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env=os.environ | (environment or {}),
            )
        except OSError as error:
            raise WorkerError(name, error) from error
        try:
            self._read_answer()
        except WorkerError:
            self.close()
            raise
        self._send(signal.SIGSTOP)

    @property
    def pid(self):
        return self._process.pid

    @contextlib.contextmanager
    def awake(self):
        """Lets the process run inside the block."""
        self._send(signal.SIGCONT)
        try:
            yield self
        finally:
            self._send(signal.SIGSTOP)

    def time_ms(self, workload, passes, warmups=0):
        """Runs the workload; milliseconds of each measured pass."""
        return [float(us) / 1e3 for us in self._ask(f"time {warmups} {passes} {workload}")]

    def logits(self, workload):
        return [float(logit) for logit in self._ask(f"logits {workload}")]

    def close(self):
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _send(self, which):
        if self._process.poll() is None:
            self._process.send_signal(which)

    def _ask(self, request):
        try:
            self._process.stdin.write(f"{request}\n".encode())
        except BrokenPipeError:
            pass  # The answer says why.
        return self._read_answer().split()

    def _read_answer(self):
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_SECS)[0]:
                raise WorkerError(self.name, f"no answer in {ANSWER_TIMEOUT_SECS} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise WorkerError(self.name, f"ended: {self._last_words()}")
            answer += part
        answer = answer.decode().strip()
        if answer.startswith("failed"):
            raise WorkerError(self.name, answer)
        return answer

    def _last_words(self):
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(filter(str.strip, lines[-LAST_LINES:])) or "without a word"


@contextlib.contextmanager
def spinning_process():
    """A process that does nothing but use a CPU, while inside the block; gives its id."""
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield spinner.pid
    finally:
        spinner.kill()
        spinner.wait()


def measure(workers, workload, budget_secs, min_rounds=3, ignored_pid=None):
    """Gives each worker its turn, round after round, for `budget_secs` and at least `min_rounds`.

    What `ignored_pid` uses of the machine belongs to the measurement. Returns timings by name.
    """
    pass_ms = {}
    for worker in workers:
        with worker.awake():
            (pass_ms[worker.name],) = worker.time_ms(workload, passes=1)
    timings = {worker.name: Timings() for worker in workers}
    ends = time.monotonic() + budget_secs
    rounds = 0
    while rounds < min_rounds or time.monotonic() < ends:
        rounds += 1
        for worker in workers:
            seen = timings[worker.name]
            _take_turn(worker, workload, pass_ms[worker.name], seen, ignored_pid)
            pass_ms[worker.name] = min(seen.passes_ms)
    return timings


def _take_turn(worker, workload, pass_ms, timings, ignored_pid):
    fitting = int(TURN_SECS * 1e3 / pass_ms)
    passes = max(1, min(MAX_PASSES_PER_TURN, fitting))
    # The turns of others emptied the caches. Beside a long pass that is nothing.
    warmups = 1 if fitting > 1 else 0
    pids = [worker.pid] + ([ignored_pid] if ignored_pid else [])
    with worker.awake():
        started, busy = time.monotonic(), _other_cpu_secs(pids)
        timings.passes_ms += worker.time_ms(workload, passes, warmups)
        used_secs = _other_cpu_secs(pids) - busy
    timings.other_cpus.append(max(0.0, used_secs / (time.monotonic() - started)))


def _other_cpu_secs(pids):
    """CPU time that all processes but `pids` have used since the machine started."""
    return processes.machine_cpu_secs() - processes.cpu_secs(pids)
