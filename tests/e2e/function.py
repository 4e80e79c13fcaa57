"""A function's binary as a process of the test: started, waited for, stopped by its pid."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
PREDICT = ROOT / "target" / "release" / "predict"
EMBED = PREDICT.with_name("embed")
RERANK = PREDICT.with_name("rerank")
TOKEN = PREDICT.with_name("token")
SANDERLING = PREDICT.with_name("sanderling")
# For functions for a GPU: where they find `libcuda.so.1`, which has none.
EMULATED_GPU = {"LD_LIBRARY_PATH": ROOT / "target" / "emulated-driver"}

# Longer than any start on a busy machine; a start that takes this long has failed.
START_SECS = 60


class Function:
    """A running binary, its base URL and the JSON lines it has logged so far."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.logs: list[dict] = []
        self._lines: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        address = self.wait_for_log("listening")["address"]
        self.port = int(address.rsplit(":", 1)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for_log(self, message: str) -> dict:
        """The first log line that says `message`; fails if the process ends before."""
        deadline = time.monotonic() + START_SECS
        while True:
            for line in self.logs:
                if line.get("message") == message:
                    return line
            line = self._lines.get(timeout=deadline - time.monotonic())
            assert line is not None, f"ended before it said {message!r}: {self.logs}"
            self.logs.append(json.loads(line))

    def read_logs(self) -> list[dict]:
        """All that was logged; call it when the process has ended."""
        while (line := self._lines.get(timeout=START_SECS)) is not None:
            self.logs.append(json.loads(line))
        return self.logs

    def wait_until_healthy(self) -> None:
        self.wait_for_log("model ready")
        assert httpx.get(f"{self.url}/health").status_code == 200

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def predict(self, **body) -> httpx.Response:
        return self.post("/predict", **body)

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def environment(**settings) -> dict[str, str]:
    """Nothing but `settings` and what a process needs to be found."""
    return {
        "PATH": os.environ["PATH"],
        **{name: str(value) for name, value in settings.items()},
    }


@contextlib.contextmanager
def running(*through: str, binary=PREDICT, **settings):
    """A function, on a free port unless PORT is set; killed at the end if it runs.

    `through` is a command that becomes the one behind it, as `nice` does.
    """
    process = subprocess.Popen(
        [*through, binary],
        cwd=ROOT,
        env=environment(**{"PORT": 0, **settings}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Function(process)
    finally:
        process.kill()
        process.wait()


def run_to_end(*arguments: str, binary=PREDICT, cwd=ROOT, **settings):
    """The binary with `arguments`, to its end; gives a `subprocess.CompletedProcess`."""
    return subprocess.run(
        [binary, *arguments],
        check=False,
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=START_SECS,
    )
