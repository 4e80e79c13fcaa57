"""A collector that reads what OTLP sends it and keeps nothing, as a process of its own."""

import contextlib
import json
import urllib.request
from dataclasses import dataclass

from . import engines
from .serving import Running, free_port, started, status_of


@dataclass(frozen=True)
class Received:
    """What came to a collector."""

    requests: int
    bytes: int


@contextlib.contextmanager
def running():
    """Starts a collector; gives it when it answers."""
    port = free_port()

    def is_up():
        return status_of(f"http://127.0.0.1:{port}") == 200

    with started([engines.COLLECTOR, str(port)], {}, is_up) as pid:
        yield Running(pid, port)


def received(collector):
    with urllib.request.urlopen(collector.url) as page:
        return Received(**json.load(page))
