"""Servers on loopback: started, waited for, and ended."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

START_TIMEOUT_SECS = 60


@dataclass(frozen=True)
class Running:
    """A process that listens on loopback."""

    pid: int
    port: int

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(binary, log=subprocess.DEVNULL, **settings):
    """Starts a function, whose lines go to `log`; gives it when it is healthy."""
    port = free_port()

    def is_up():
        return status_of(f"http://127.0.0.1:{port}/health") == 200

    with started([binary], {"PORT": str(port), "RUST_LOG": "off"} | settings, is_up, log) as pid:
        yield Running(pid, port)


@contextlib.contextmanager
def started(command, environment, is_up, log=subprocess.DEVNULL):
    """Starts a process and gives its pid when it is up; ends it when the block ends."""
    environment = {"PATH": os.environ["PATH"]} | environment
    process = subprocess.Popen(command, env=environment, stdout=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_SECS
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} does not start")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def status_of(request):
    """None if nobody answers."""
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None
