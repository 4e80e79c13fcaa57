"""Who serves in `tests/bench admission`: our function and its peer with each setting, a Redis, and
where keys are fetched.
"""

import contextlib
import http.server
import json
import secrets
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field

import jwt
import redis
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from . import contestants, engines
from .serving import Running, free_port, started, status_of

OURS, FASTAPI = "Sanderling", "FastAPI"
NOTHING, HS256 = "nothing set", "HS256"
IN_MEMORY, IN_REDIS = "HS256, limit in memory", "HS256, limit in Redis"
EDDSA, RS256 = "EdDSA by JWKS", "RS256 by JWKS"
# Nobody is refused.
OUR_LIMIT, SLOWAPI_LIMIT = "user=1000000/s", "1000000/second"
RSA_BITS, RSA_EXPONENT = 2048, 65537
TOKEN_SECS = 86400
MODEL = contestants.ROOT / "functions" / "predict" / "model"


@dataclass(frozen=True)
class Setting:
    """How a server is started, and what its callers show."""

    server: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    token: str | None = None

    @property
    def key(self):
        return self.server, self.name

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def header_lines(self):
        return [f"{name}: {value}" for name, value in self.headers.items()]


@contextlib.contextmanager
def all_settings(redis_url):
    """What is compared; keys can be fetched while the block lasts."""
    secret = secrets.token_hex(32)
    keys = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "RS256": rsa.generate_private_key(RSA_EXPONENT, RSA_BITS),
    }
    token = _signed(secret, "HS256")
    ours, theirs = {"AUTH": "jwt", "JWT_SECRET": secret}, {"JWT_SECRET": secret}
    ours_limited, theirs_limited = (
        ours | {"RATE_LIMITS": OUR_LIMIT},
        theirs | {"LIMIT": SLOWAPI_LIMIT},
    )
    in_redis = {"REDIS_URL": redis_url}
    with _serving_keys(keys) as jwks_url:
        by_jwks = {"AUTH": "jwt", "JWT_JWKS_URL": jwks_url}
        yield [
            Setting(OURS, NOTHING),
            Setting(OURS, HS256, ours, token),
            Setting(OURS, IN_MEMORY, ours_limited, token),
            Setting(OURS, IN_REDIS, ours_limited | in_redis, token),
            Setting(OURS, EDDSA, by_jwks, _signed(keys["EdDSA"], "EdDSA")),
            Setting(OURS, RS256, by_jwks, _signed(keys["RS256"], "RS256")),
            Setting(FASTAPI, NOTHING),
            Setting(FASTAPI, HS256, theirs, token),
            Setting(FASTAPI, IN_MEMORY, theirs_limited, token),
            Setting(FASTAPI, IN_REDIS, theirs_limited | in_redis, token),
        ]


def _signed(key, algorithm):
    """A token of one user for a day; the name of the algorithm is that of the key."""
    now = int(time.time())
    claims = {"sub": "bench", "role": "user", "iat": now, "exp": now + TOKEN_SECS}
    return jwt.encode(claims, key, algorithm, headers={"kid": algorithm})


@contextlib.contextmanager
def _serving_keys(keys):
    """Answers every GET with the public keys; gives the URL."""
    algorithms = jwt.algorithms.get_default_algorithms()
    public = [
        algorithms[name].to_jwk(key.public_key(), as_dict=True)
        | {"kid": name, "alg": name, "use": "sig"}
        for name, key in keys.items()
    ]
    body = json.dumps({"keys": public}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/.well-known/jwks.json"
        server.shutdown()


@contextlib.contextmanager
def running_redis(folder):
    """An empty Redis that keeps nothing on disk."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]

    def is_up():
        with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port) as client:
            return client.ping()

    with started([*command, "--dir", folder], {}, is_up) as pid:
        yield Running(pid, port)


@contextlib.contextmanager
def running(setting):
    """Starts a server; gives it when it is healthy, and lets in those it should and no others."""
    port = free_port()
    environment = {"PORT": str(port)} | setting.environment
    if setting.server == OURS:
        command = [engines.NOOP]
        environment |= {"MODEL_URI": str(MODEL), "RUST_LOG": "off"}
    else:
        command = [sys.executable, "-m", "uvicorn", "admission:app", f"--port={port}"]
        command += [f"--app-dir={engines.PEERS / 'fastapi'}", "--loop=uvloop", "--http=httptools"]
        command += ["--no-access-log", "--log-level=warning"]

    def is_up():
        return status_of(f"http://127.0.0.1:{port}/health") == 200

    with started(command, environment, is_up) as pid:
        server = Running(pid, port)
        statuses = ask(server, {}), ask(server, setting.headers)
        if statuses != (401 if setting.token else 200, 200):
            sys.exit(f"{setting.key}: {statuses} without and with a token")
        yield server


def ask(server, headers):
    """The status of the answer to one text."""
    headers = {"content-type": "application/json"} | headers
    return status_of(urllib.request.Request(f"{server.url}/predict", b'{"text": "good"}', headers))
