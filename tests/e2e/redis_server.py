"""A Redis of the test's own, on a free port and in memory only, stopped by its pid."""

import contextlib
import signal
import subprocess
import time

import redis
from balancer import free_ports, is_open
from function import START_SECS


class RedisServer:
    """A redis-server that can be killed, started again and halted."""

    def __init__(self, port: int, options: tuple[str, ...]):
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self.client = redis.Redis(port=port, decode_responses=True)
        self._options = options
        self.start()

    def start(self) -> None:
        """Starts it, empty, and waits until it listens."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECS
        while not is_open(self.port):
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def halt(self) -> None:
        """Lets it answer nothing, with all its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def redis_server(*options: str, port: int | None = None):
    """A Redis with `options`, killed at the end."""
    server = RedisServer(port or free_ports(1)[0], options)
    try:
        yield server
    finally:
        server.client.close()
        server.kill()
