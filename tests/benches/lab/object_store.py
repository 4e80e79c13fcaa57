"""The S3 server of tests/object-store, and the time that a plain download from it takes."""

import contextlib
import http.client
import json
import subprocess
import time
import urllib.parse

RANGE_BYTES = 8 << 20
REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}


class ObjectStore:
    """A server that runs: folders of its root are buckets, anyone may read, signed or not."""

    def __init__(self, endpoint, pid):
        self.endpoint = endpoint
        self.pid = pid

    def uri(self, bucket, prefix):
        """The model behind `prefix` as a MODEL_URI."""
        query = {"endpoint": self.endpoint, "region": REGION, "path_style": "true"}
        return f"s3://{bucket}/{prefix}?{urllib.parse.urlencode(query, safe=':/')}"

    def download_ms(self, path, num_bytes):
        """The time to get an object range by range over one connection, and keep none of it."""
        buffer = memoryview(bytearray(RANGE_BYTES))
        host = self.endpoint.removeprefix("http://")
        before = time.perf_counter()
        connection = http.client.HTTPConnection(host)
        with contextlib.closing(connection):
            for start in range(0, num_bytes, RANGE_BYTES):
                size = min(RANGE_BYTES, num_bytes - start)
                connection.request("GET", path, headers=_range(start, size))
                response = connection.getresponse()
                received = 0
                while received < size and (part := response.readinto(buffer[received:size])):
                    received += part
                if response.status != 206 or received != size:
                    raise OSError(f"{path}: {response.status} with {received} of {size} bytes")
                response.read()
        return (time.perf_counter() - before) * 1e3


def _range(start, size):
    return {"Range": f"bytes={start}-{start + size - 1}"}


@contextlib.contextmanager
def running(binary, root, mbit_per_s=None):
    """Serves `root`, with all answers together at `mbit_per_s` if that is given."""
    rate = [f"--mbit-per-s={mbit_per_s}"] if mbit_per_s else []
    command = [binary, root, "--public", *rate]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield ObjectStore(json.loads(process.stdout.readline())["endpoint"], process.pid)
    finally:
        process.kill()
        process.communicate()
