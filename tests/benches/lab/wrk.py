"""Runs wrk against a server: more requests a second than any model answers."""

import json
import resource
import subprocess
import time
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
    # CPU time for a request: of the server, of what ran beside it, and of wrk.
    server_us: float
    beside_us: float
    wrk_us: float
    # How many CPUs all other processes kept busy.
    other_cpus: float


def version():
    """As wrk calls itself."""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:2])


def run(start, bodies, secs, headers=(), connections=CONNECTIONS, beside=()):
    """One thread of wrk over some connections, as fast as it goes.

    `beside` are the pids of what the server needs, such as a Redis.
    """
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={secs}s"]
    command += ["--timeout=10s", f"--script={LAB / 'wrk.lua'}"]
    command += [f"--header={header}" for header in headers]
    command += [f"http://127.0.0.1:{start.port}/predict", "--", bodies]
    pids = processes.tree(start.pid)

    def cpu_secs():
        known = processes.cpu_secs(pids), processes.cpu_secs(beside), _children_cpu_secs()
        return *known, processes.machine_cpu_secs()

    began, before = time.monotonic(), cpu_secs()
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took_secs = time.monotonic() - began
    *known_secs, machine_secs = (now - then for now, then in zip(cpu_secs(), before, strict=True))
    said = json.loads(ran.stdout.splitlines()[-1])
    server_us, beside_us, wrk_us = (used / said["requests"] * 1e6 for used in known_secs)
    return Seen(
        num_requests=said["requests"],
        rps=said["requests"] / said["secs"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        num_failed=said["failed"],
        server_us=server_us,
        beside_us=beside_us,
        wrk_us=wrk_us,
        other_cpus=max(0.0, machine_secs - sum(known_secs)) / took_secs,
    )


def _children_cpu_secs():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
