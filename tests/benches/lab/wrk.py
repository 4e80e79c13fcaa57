"""Runs wrk against a server: more requests a second than any model answers."""

import json
import resource
import subprocess
from dataclasses import dataclass

from . import processes
from .engines import LAB

CONNECTIONS = 64


@dataclass(frozen=True)
class Seen:
    """What one run saw."""

    num_requests: int
    rps: float
    p50_ms: float
    p99_ms: float
    num_failed: int
    # CPU time for a request: of the server, and of wrk.
    server_us: float
    wrk_us: float


def version():
    """As wrk calls itself."""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:2])


def run(start, bodies, secs, headers=()):
    """One thread of wrk over `CONNECTIONS` connections, as fast as it goes."""
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={secs}s"]
    command += ["--timeout=10s", f"--script={LAB / 'wrk.lua'}"]
    command += [f"--header={header}" for header in headers]
    command += [f"http://127.0.0.1:{start.port}/predict", "--", bodies]
    pids = processes.tree(start.pid)
    server_before, wrk_before = processes.cpu_secs(pids), _children_cpu_secs()
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    server_secs = processes.cpu_secs(pids) - server_before
    wrk_secs = _children_cpu_secs() - wrk_before
    said = json.loads(ran.stdout.splitlines()[-1])
    return Seen(
        num_requests=said["requests"],
        rps=said["requests"] / said["secs"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        num_failed=said["failed"],
        server_us=server_secs / said["requests"] * 1e6,
        wrk_us=wrk_secs / said["requests"] * 1e6,
    )


def _children_cpu_secs():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
