"""Lambda's Runtime API as far as a function needs it: hands out events, takes the answers.

Where the emulator is too kind (it shows no stage in a path, and no error of the runtime) the tests
speak the wire format themselves.
"""

import contextlib
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RuntimeApi:
    """One function's side of Lambda: `invoke` is what a caller would see."""

    def __init__(self, port: int):
        self.address = f"127.0.0.1:{port}"
        self.events: queue.Queue = queue.Queue()
        self.answers: queue.Queue = queue.Queue()

    def invoke(self, event: dict) -> dict:
        """The function's answer to `event`; raises what it reported as an error."""
        self.events.put(event)
        path, answer = self.answers.get(timeout=60)
        assert path.endswith("/response"), (path, answer)
        return answer


@contextlib.contextmanager
def runtime_api():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = json.dumps(api.events.get()).encode()
            self.send_response(200)
            self.send_header("lambda-runtime-aws-request-id", "request-1")
            deadline_ms = int((time.time() + 30) * 1000)
            self.send_header("lambda-runtime-deadline-ms", str(deadline_ms))
            arn = "arn:aws:lambda:us-east-1:123456789012:function:predict"
            self.send_header("lambda-runtime-invoked-function-arn", arn)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            api.answers.put((self.path, json.loads(body)))
            self.send_response(202)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api = RuntimeApi(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()


def http_event(method: str, path: str, body: dict | None = None, stage: str = "$default") -> dict:
    """An event of a function URL or an HTTP API (payload version 2)."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "id.lambda-url.aws"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "id",
            "domainName": "id.lambda-url.aws",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "test",
            },
            "requestId": "request-1",
            "stage": stage,
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238000,
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }
