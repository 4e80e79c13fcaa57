"""A collector that reads what OTLP sends it and keeps nothing, as a process of its own.

    python -m benches.lab.collector <port>

Answers every GET with what came so far: {"requests": 2, "bytes": 250000}.
"""

import contextlib
import http.server
import json
import sys
import urllib.request
from dataclasses import dataclass

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
    command = [sys.executable, "-m", __name__, str(port)]

    def is_up():
        return status_of(f"http://127.0.0.1:{port}") == 200

    with started(command, {}, is_up) as pid:
        yield Running(pid, port)


def received(collector):
    with urllib.request.urlopen(collector.url) as page:
        return Received(**json.load(page))


def main():
    sizes = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            sizes.append(len(body))
            self.answer(b"")

        def do_GET(self):
            self.answer(json.dumps({"requests": len(sizes), "bytes": sum(sizes)}).encode())

        def answer(self, body):
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Says nothing."""

    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
