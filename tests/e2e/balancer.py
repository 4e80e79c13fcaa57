"""nginx with `infra/nginx/nginx.conf`: the very file, on ports and in a folder of the test."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

from function import ROOT, START_SECS

CONF = ROOT / "infra" / "nginx" / "nginx.conf"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"


class Balancer:
    """A running nginx and what it has logged."""

    def __init__(self, port: int, folder: Path):
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "access.log"

    def requests(self) -> list[dict]:
        """A line a request, as `log_format` says."""
        # The last line may not be whole yet.
        *lines, _ = self._log.read_text().split("\n")
        return [json.loads(line) for line in lines]


def free_ports(count: int) -> list[int]:
    """Free ports that no outgoing connection takes while nobody listens on them."""
    ports = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


def configuration(folder: Path, port: int, instances: list[int], changes: dict[str, str]) -> str:
    """The file, listening on `port` before `instances`, with `changes`; each must apply once."""
    kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    changes = {
        "user www-data;\n": "user root;\n" if os.geteuid() == 0 else "",
        "pid /run/nginx.pid;": f"pid {folder}/pid;",
        "error_log /var/log/nginx/error.log;": f"error_log {folder}/error.log;",
        "access_log /var/log/nginx/access.log ": f"access_log {folder}/access.log ",
        "http {\n": f"http {{\n{temporary}",
        "listen 80;": f"listen 127.0.0.1:{port};",
        **{
            f"server 127.0.0.1:{8081 + index} ": f"server 127.0.0.1:{instance} "
            for index, instance in enumerate(instances)
        },
        **changes,
    }
    text = CONF.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {CONF.name}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def balanced(folder: Path, instances: list[int], changes: dict[str, str] | None = None):
    """nginx before `instances`, three ports; stopped at the end."""
    (port,) = free_ports(1)
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, port, instances, changes or {}))
    command = [NGINX, "-e", "stderr", "-p", folder, "-c", file]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0 and "[warn]" not in tested.stderr, tested.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        deadline = time.monotonic() + START_SECS
        while not is_open(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield Balancer(port, folder)
    finally:
        # Not SIGKILL: it would leave the workers.
        process.terminate()
        process.wait(timeout=START_SECS)


def is_open(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
