"""An instance of the test's own: it answers what it was sent, or fails as the path says."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Listens on a free port; `seen` has the headers of each request of `num_connections`."""

    # A handler that still waits must not hold up the end.
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = self.server_port
        self.seen: list = []
        self.num_connections = 0
        self.release = threading.Event()
        self.vanish_once = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_POST(self) -> None:
        self.server.seen.append(self.headers)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/vanish" or self.server.vanish_once:
            self.server.vanish_once = False
            self.close_connection = True
        elif self.path == "/stream":
            self._stream()
        else:
            if self.path == "/hold":
                self.server.release.wait(60)
            answer = json.dumps({"port": self.server.port, "body_bytes": len(body)}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def _stream(self) -> None:
        """Two pieces, the second when it is released."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.server.release.wait(60)
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def stubs(count: int):
    """Stubs that answer until the end."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Stub()) for _ in range(count)]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
        yield servers
