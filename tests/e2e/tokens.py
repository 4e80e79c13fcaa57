"""Keys of an issuer, tokens good and bad, and a server for the issuer's key set."""

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "c2VjcmV0 that looks like base64 and is not"

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
# Another's key, which nobody publishes.
STRANGER = ed25519.Ed25519PrivateKey.generate()

KEYS = {"RS256": RSA, "ES256": P256, "EdDSA": ED25519}


def jwk(algorithm: str) -> dict:
    """The public key for `algorithm`, whose name it also has."""
    of = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[algorithm]
    key = of.to_jwk(KEYS[algorithm].public_key(), as_dict=True)
    return key | {"kid": algorithm, "alg": algorithm, "use": "sig"}


def key_set() -> dict:
    return {"keys": [jwk(algorithm) for algorithm in KEYS]}


def claims(**more) -> dict:
    """Claims that hold, with `more` in their place or, if it is None, without it."""
    good = {"sub": "ada", "role": "user", "exp": int(time.time()) + 3600}
    return {name: value for name, value in (good | more).items() if value is not None}


def token(key=SECRET, algorithm="HS256", headers=None, **more) -> str:
    return jwt.encode(claims(**more), key, algorithm, headers=headers)


def signed_by(algorithm: str, **more) -> str:
    """A token by the published key for `algorithm`."""
    return token(KEYS[algorithm], algorithm, {"kid": algorithm}, **more)


def part(value) -> str:
    """JSON, or bytes, as a part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer(ThreadingHTTPServer):
    """Publishes `body` on a free port; counts who asks, and knows whose trace the last one was of."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/jwks.json"
        self.body = json.dumps(key_set()).encode()
        self.num_fetches = 0
        self.traceparent = None


class _Handler(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.num_fetches += 1
        self.server.traceparent = self.headers["traceparent"]
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def issuer():
    """An issuer that answers until the end, or until it is closed."""
    server = Issuer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        stop(server)


def stop(server: Issuer) -> None:
    """From now on nobody answers at its port."""
    server.shutdown()
    server.server_close()
