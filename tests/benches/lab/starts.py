"""Starts processes and times them, from just before `exec` to their first right answer.

Over HTTP, the client connects again until the port is open; a function that opens it before its
model can answer holds the request meanwhile. A process without a port prints its answer.
"""

import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import processes

ANSWER_TIMEOUT_SECS = 120
# How long the client waits before it connects again, and from when on it waits the longer time, so
# that it takes no noticeable part of the CPUs from what starts slowly.
RETRY_SECS, PATIENT_RETRY_SECS, PATIENT_FROM_SECS = 0.0002, 0.001, 0.1
# Stands in commands and settings for a free port, and for a folder that exists and is empty.
PORT, NEW_FOLDER = "{port}", "{new folder}"


class StartError(Exception):
    """A process that could not start, died, hung, or gave no or a wrong answer."""


@dataclass(frozen=True)
class Answer:
    """What has to be answered to `text`, and how far the score may be off."""

    text: str
    label: str
    score: float
    tolerance: float

    def check(self, body):
        """Raises ValueError if this is not it."""
        best = json.loads(body)[0]
        if best["label"] != self.label or not abs(best["score"] - self.score) <= self.tolerance:
            raise ValueError(f"wrong answer: {best}, not {self.label} {self.score:.4f}")


@dataclass(frozen=True)
class Program:
    """How a process is started that answers one text."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    # Otherwise it prints its answer and waits for the end of stdin.
    over_http: bool = True


@dataclass(frozen=True)
class Stage:
    """A part of a start, from the header `server-timing`; in milliseconds since the start."""

    name: str
    start_ms: float
    duration_ms: float


@dataclass(frozen=True)
class Start:
    """One process, after its first answer."""

    pid: int
    # On which it listens, if it answers over HTTP.
    port: int
    answer_ms: float
    # At most until then, and at that time.
    peak_bytes: int
    resident_bytes: int
    stages: tuple[Stage, ...]


@contextlib.contextmanager
def started(program, answer):
    """Starts a process and gives a `Start` when it has answered; ends it when the block ends.

    # Errors

    `StartError`.
    """
    folder = tempfile.mkdtemp(prefix="bench-cold-")
    port = str(_free_port())

    def filled(text):
        return text.replace(PORT, port).replace(NEW_FOLDER, folder)

    command = [filled(str(part)) for part in program.command]
    environment = {"PATH": os.environ["PATH"]}
    environment |= {name: filled(str(value)) for name, value in program.environment.items()}
    with tempfile.TemporaryFile() as log:
        before = time.perf_counter()
        process = _spawn(command, environment, program.over_http, log)
        try:
            body, stages = (
                _ask(process, int(port), answer.text) if program.over_http else _read_line(process)
            )
            answer_ms = (time.perf_counter() - before) * 1e3
            answer.check(body)
            memory = processes.resident(processes.tree(process.pid))
            yield Start(process.pid, int(port), answer_ms, *memory, stages)
        except (OSError, ValueError, KeyError, IndexError, http.client.HTTPException) as error:
            name = Path(command[0]).name
            raise StartError(f"{name}: {error}: {_last_words(log)}") from error
        finally:
            _end(process)
            shutil.rmtree(folder)


def exec_ms(times=20):
    """The median of what it takes to start a process that ends at once, and to see its end."""
    seen = []
    for _ in range(times):
        before = time.perf_counter()
        subprocess.Popen(["/bin/true"]).wait()
        seen.append((time.perf_counter() - before) * 1e3)
    return sorted(seen)[times // 2]


def shared_bytes(program, answer):
    """Proportional set sizes of two processes that run at once: shared pages count half."""
    with started(program, answer) as one, started(program, answer) as other:
        return [processes.memory([start.pid]) for start in (one, other)]


def _spawn(command, environment, over_http, log):
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL if over_http else subprocess.PIPE,
            stdout=log if over_http else subprocess.PIPE,
            stderr=log,
            # So that workers of a server can be ended with it.
            start_new_session=True,
        )
    except OSError as error:
        raise StartError(str(error)) from error


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _ask(process, port, text):
    """The body of the answer, and the stages it came with."""
    content = json.dumps({"text": text}).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with _connect(process, port) as connection:
        connection.sendall(head.encode() + content)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status}: {body.decode(errors='replace')}")
        return body, _read_stages(response.getheader("server-timing", ""))


def _connect(process, port):
    began = time.monotonic()
    while True:
        connection = socket.socket()
        try:
            connection.settimeout(ANSWER_TIMEOUT_SECS)
            connection.connect(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except ConnectionRefusedError:
            connection.close()
            waited = time.monotonic() - began
            if process.poll() is not None:
                raise ChildProcessError(f"ended with {process.returncode}") from None
            if waited > ANSWER_TIMEOUT_SECS:
                raise
            time.sleep(RETRY_SECS if waited < PATIENT_FROM_SECS else PATIENT_RETRY_SECS)
        else:
            return connection


def _read_line(process):
    if not select.select([process.stdout], [], [], ANSWER_TIMEOUT_SECS)[0]:
        raise TimeoutError(f"no answer in {ANSWER_TIMEOUT_SECS} s")
    return process.stdout.readline(), ()


def _read_stages(header):
    """Stages of a header such as `fetch;dur=12.5;start=1.2, first_forward;dur=3;start=13.7`.

    Those without a start are left out: there is no place for them. A name that comes again is
    numbered.
    """
    stages, seen = [], Counter()
    for entry in filter(None, map(str.strip, header.split(","))):
        name, *parameters = (part.strip() for part in entry.split(";"))
        values = dict(each.split("=", 1) for each in parameters if "=" in each)
        if "start" in values and "dur" in values:
            seen[name] += 1
            name = name if seen[name] == 1 else f"{name} {seen[name]}"
            stages.append(Stage(name, float(values["start"]), float(values["dur"])))
    return tuple(stages)


def _last_words(log):
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "ERROR" in line]
    return [*lines, *errors][-1] if lines else "without a word"


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
