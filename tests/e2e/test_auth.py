"""Who is let in: tokens good and bad, and what callers are told."""

import hashlib
import hmac
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from function import run_to_end, running
from tokens import (
    ED25519,
    KEYS,
    RSA,
    SECRET,
    STRANGER,
    claims,
    issuer,
    jwk,
    part,
    signed_by,
    stop,
    token,
)

TEXT = {"text": "What a film!"}
OPEN = ["/", "/docs", "/health", "/openapi.json", "/ping", "/v2/health/live", "/v2/health/ready"]
OPEN_TOO = ["/v2/models/predict/ready"]
EXPIRED = 'Bearer realm="predict", error="invalid_token", error_description="token expired"'
INVALID = 'Bearer realm="predict", error="invalid_token", error_description="invalid token"'


def ask(function, bearer: str | None, **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {bearer}"} if bearer is not None else {}
    return httpx.post(f"{function.url}/predict", json=TEXT, headers=headers, timeout=60, **more)


@pytest.fixture(scope="module")
def by_secret():
    """`predict` for callers with a token by `SECRET`."""
    with running(AUTH="jwt", JWT_SECRET=SECRET, JWT_LEEWAY_SECS=5) as function:
        function.wait_until_healthy()
        yield function


@pytest.fixture(scope="module")
def by_key_set():
    """`predict` for callers with a token by a published key."""
    with issuer() as server, running(AUTH="jwt", JWT_JWKS_URL=server.url) as function:
        function.wait_until_healthy()
        yield function


def test_a_good_token_is_let_in(by_secret):
    assert ask(by_secret, token()).json()[0]["label"] == "POSITIVE"
    headers = {"authorization": f"bearer {token()}"}
    assert httpx.post(f"{by_secret.url}/predict", json=TEXT, headers=headers).status_code == 200


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_by_a_published_key_is_let_in(by_key_set, algorithm):
    assert ask(by_key_set, signed_by(algorithm)).status_code == 200


def test_without_a_token_nobody_is_let_in(by_secret):
    answer = ask(by_secret, None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="predict"'
    assert answer.json()["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("path", OPEN + OPEN_TOO)
def test_whoever_asks_how_things_are_needs_no_token(by_secret, path):
    assert httpx.get(f"{by_secret.url}{path}").status_code == 200


@pytest.mark.parametrize("path", ["/info", "/activity", "/v1/models", "/v2", "/v2/models/predict"])
def test_whoever_asks_for_more_does(by_secret, path):
    assert httpx.get(f"{by_secret.url}{path}").status_code == 401
    headers = {"authorization": f"Bearer {token()}"}
    assert httpx.get(f"{by_secret.url}{path}", headers=headers).status_code == 200


def test_the_document_says_that_a_token_is_needed(by_secret):
    document = httpx.get(f"{by_secret.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/predict"]["post"]["security"] == [{"token": []}]
    assert {"401", "403"} <= document["paths"]["/predict"]["post"]["responses"].keys()
    assert "security" not in document["paths"]["/health"]["get"]


def test_a_refusal_comes_before_the_body_is_read(by_secret):
    answer = httpx.post(f"{by_secret.url}/predict", content=b"{", headers={"x": "y"})
    assert answer.status_code == 401


def test_a_refusal_comes_in_the_envelope_of_its_dialect(by_secret):
    answer = httpx.post(f"{by_secret.url}/v1/classify", json={"input": "x"})
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthenticated")
    answer = httpx.post(f"{by_secret.url}/predict", json={"inputs": "x"})
    assert answer.status_code == 401


def whole() -> tuple[str, str, str]:
    header, payload, signature = token().split(".")
    return header, payload, signature


def pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def der(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def hs256(secret: bytes, header: dict) -> str:
    """A token signed by HMAC with whatever bytes, which PyJWT would refuse as a secret."""
    message = f"{part({'alg': 'HS256', 'typ': 'JWT'} | header)}.{part(claims())}"
    return f"{message}.{part(hmac.digest(secret, message.encode(), hashlib.sha256))}"


def unsigned(algorithm: str, signature: str = "") -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims())}.{signature}"


def forged() -> dict[str, str]:
    """Tokens that no function may take, whatever keys it has."""
    header, payload, signature = whole()
    own_key = {"jwk": jwk("EdDSA") | {"x": part(b"\0" * 32)}}
    raw = b'{"sub":"ada","exp":1,"exp":9999999999}'
    return {
        "no signature algorithm": unsigned("none"),
        "none, spelt otherwise": unsigned("nOnE"),
        "none with a signature": unsigned("none", signature),
        "an unknown algorithm": unsigned("HS512", signature),
        "a stripped signature": f"{header}.{payload}.",
        "without a signature": f"{header}.{payload}",
        "a cut header": f"{header[:-4]}.{payload}.{signature}",
        "a cut payload": f"{header}.{payload[:-4]}.{signature}",
        "a cut signature": f"{header}.{payload}.{signature[:-4]}",
        "another's payload": f"{header}.{part(claims(role='admin'))}.{signature}",
        "four parts": f"{header}.{payload}.{signature}.{signature}",
        "only dots": "..",
        "padding": f"{header}.{payload}.{signature}=",
        "base64 of another alphabet": f"{header}.{payload}.{'+/' * 21}",
        "not base64": f"{header}.{payload}.{'*' * 43}",
        "an extension": token(headers={"crit": ["exp"]}),
        "doubled claims": f"{header}.{part(raw)}.{signature}",
        "its own key": token(STRANGER, "EdDSA", own_key),
        "a URL of its own keys": token(STRANGER, "EdDSA", {"jku": "http://127.0.0.1:1/jwks.json"}),
        "a certificate of its own": token(STRANGER, "EdDSA", {"x5u": "http://127.0.0.1:1/x.pem"}),
        "another secret": token("another secret of more than thirty-two bytes"),
        "a public key as a secret, PEM": hs256(pem(RSA), {"kid": "RS256"}),
        "a public key as a secret, DER": hs256(der(RSA), {"kid": "RS256"}),
        "a public key as a secret, raw": hs256(
            ED25519.public_key().public_bytes_raw(), {"kid": "EdDSA"}
        ),
        "a stranger's key by a known name": token(STRANGER, "EdDSA", {"kid": "EdDSA"}),
        "the name of a key of another algorithm": token(ED25519, "EdDSA", {"kid": "RS256"}),
        "an unknown key": token(STRANGER, "EdDSA", {"kid": "nobody"}),
        "a path as a key": token(STRANGER, "EdDSA", {"kid": "../../../../etc/passwd"}),
        "a URL as a key": token(STRANGER, "EdDSA", {"kid": "http://127.0.0.1:1/"}),
        "SQL as a key": token(STRANGER, "EdDSA", {"kid": "' OR 1=1 --"}),
        "NUL as a key": token(STRANGER, "EdDSA", {"kid": "RS256\0"}),
        "a long name of a key": token(STRANGER, "EdDSA", {"kid": "k" * 5000}),
    }


@pytest.mark.parametrize("name", forged())
def test_a_forged_token_is_not_taken(by_secret, by_key_set, name):
    for function in (by_secret, by_key_set):
        answer = ask(function, forged()[name])
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, INVALID)
        assert answer.json()["error"]["message"] == "invalid token"


def test_a_good_token_of_the_other_kind_is_not_taken(by_secret, by_key_set):
    assert ask(by_key_set, token()).status_code == 401
    assert ask(by_secret, signed_by("RS256")).status_code == 401


@pytest.mark.parametrize("num_bytes", [20_000, 100_000, 1_000_000])
def test_a_huge_token_is_refused_by_its_length(by_secret, num_bytes):
    try:
        answer = ask(by_secret, token(headers={"kid": "k" * num_bytes}))
    except httpx.WriteError:
        # Refused while it was being sent.
        return
    assert answer.status_code == 431


def now() -> int:
    return int(time.time())


@pytest.mark.parametrize(
    ("name", "make", "challenge"),
    [
        ("within the leeway", lambda: token(exp=now() - 3), None),
        ("one second past it", lambda: token(exp=now() - 6), EXPIRED),
        ("long past", lambda: token(exp=0), EXPIRED),
        ("negative", lambda: token(exp=-1), EXPIRED),
        ("a fraction", lambda: token(exp=now() + 0.5), None),
        ("in a while", lambda: token(nbf=now() + 3), None),
        ("not yet", lambda: token(nbf=now() + 60), INVALID),
        ("for ever", lambda: token(exp=1e300), None),
        ("no end", lambda: token(exp=None), INVALID),
        ("for somebody else", lambda: token(aud="somebody"), INVALID),
        ("of nobody", lambda: token(sub=None), INVALID),
        ("of an empty name", lambda: token(sub=""), INVALID),
        ("of a user's id", lambda: token(sub=None, user_id="ada"), None),
        ("of a number", lambda: token(sub=None, user_id=7), None),
        ("without a role", lambda: token(role=None), None),
    ],
)
def test_a_token_holds_for_its_time_and_its_owner(by_secret, name, make, challenge):
    answer = ask(by_secret, make())
    assert answer.status_code == (401 if challenge else 200), name
    assert answer.headers.get("www-authenticate") == challenge
    if challenge == EXPIRED:
        assert answer.json()["error"] == {"code": "token_expired", "message": "token expired"}


@pytest.mark.parametrize("exp", ["9999999999", None, [], {}, True])
def test_an_end_that_is_no_number_is_none(by_secret, exp):
    message = f"{part({'alg': 'HS256'})}.{part(claims() | {'exp': exp})}"
    signature = part(hmac.digest(SECRET.encode(), message.encode(), hashlib.sha256))
    assert ask(by_secret, f"{message}.{signature}").headers["www-authenticate"] == INVALID


def test_issuer_and_audience_have_to_be_ours():
    settings = {"JWT_ISSUER": "us", "JWT_AUDIENCE": "here"}
    with running(AUTH="jwt", JWT_SECRET=SECRET, **settings) as function:
        function.wait_until_healthy()
        good = [{"iss": "us", "aud": "here"}, {"iss": "us", "aud": ["there", "here"]}]
        bad = [{}, {"iss": "us"}, {"aud": "here"}, {"iss": "us", "aud": "there"}]
        bad += [{"iss": "them", "aud": "here"}, {"iss": "us", "aud": []}]
        assert {ask(function, token(**each)).status_code for each in good} == {200}
        assert {ask(function, token(**each)).status_code for each in bad} == {401}


def test_two_tokens_are_a_mistake(by_secret):
    headers = [("authorization", f"Bearer {token()}")] * 2
    answer = httpx.post(f"{by_secret.url}/predict", json=TEXT, headers=headers)
    assert answer.status_code == 400
    assert 'error="invalid_request"' in answer.headers["www-authenticate"]


def test_a_token_elsewhere_is_none(by_secret):
    assert ask(by_secret, None, params={"access_token": token()}).status_code == 401
    headers = {"authorization": f"Basic {token()}"}
    answer = httpx.post(f"{by_secret.url}/predict", json=TEXT, headers=headers)
    assert answer.headers["www-authenticate"] == INVALID


def test_a_function_takes_the_roles_that_it_is_for():
    settings = {"ALLOWED_ROLES": "premium, admin"}
    with running(AUTH="jwt", JWT_SECRET=SECRET, **settings) as function:
        function.wait_until_healthy()
        assert ask(function, token(role="premium")).status_code == 200
        for role in ["user", "Premium", None, "premium "]:
            answer = ask(function, token(role=role))
            assert answer.status_code == 403, role
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
        assert ask(function, None).status_code == 401


def test_callers_without_a_token_may_be_let_in():
    settings = {"ALLOWED_ROLES": "anonymous,user"}
    with running(AUTH="jwt", JWT_SECRET=SECRET, **settings) as function:
        function.wait_until_healthy()
        assert ask(function, None).status_code == 200
        assert ask(function, token()).status_code == 200
        assert ask(function, token(exp=1)).status_code == 401


def test_the_secret_before_still_holds(tmp_path):
    old, file = "the secret before this one, long enough", tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    settings = {"JWT_SECRET_FILE": file, "JWT_PREVIOUS_SECRET": old}
    with running(AUTH="jwt", **settings) as function:
        function.wait_until_healthy()
        assert ask(function, token()).status_code == 200
        assert ask(function, token(old)).status_code == 200


def test_keys_are_fetched_once_and_at_a_bounded_rate():
    with issuer() as server, running(AUTH="jwt", JWT_JWKS_URL=server.url) as function:
        function.wait_until_healthy()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: ask(function, signed_by("EdDSA")), range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert server.num_fetches == 1
        strangers = [token(STRANGER, "EdDSA", {"kid": f"nobody {number}"}) for number in range(50)]
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda stranger: ask(function, stranger), strangers))
        assert {answer.status_code for answer in answers} == {401}
        assert server.num_fetches <= 2
        stop(server)
        assert ask(function, signed_by("RS256")).status_code == 200


def test_a_set_that_cannot_be_read_changes_nothing():
    settings = {"AUTH": "jwt", "OTEL_TRACES_EXPORTER": "otlp"}
    with issuer() as server, running(JWT_JWKS_URL=server.url, **settings) as function:
        function.wait_until_healthy()
        assert ask(function, signed_by("EdDSA")).status_code == 200
        assert server.traceparent is None, "it was asked at the start"
        server.body = b"<html>"
        time.sleep(10)  # Until keys may be fetched again.
        answer = ask(function, token(STRANGER, "EdDSA", {"kid": "new"}))
        assert answer.status_code == 401
        assert server.traceparent == answer.headers["traceresponse"]
        function.wait_for_log("no key set")
        assert ask(function, signed_by("EdDSA")).status_code == 200


def test_without_any_key_callers_are_told_to_come_back():
    with issuer() as server:
        stop(server)
        with running(AUTH="jwt", JWT_JWKS_URL=server.url) as function:
            function.wait_until_healthy()
            answer = ask(function, signed_by("EdDSA"))
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "keys_unavailable"
            assert int(answer.headers["retry-after"]) >= 1


def test_secrets_are_never_shown():
    with running(AUTH="jwt", JWT_SECRET=SECRET, RUST_LOG="trace") as function:
        function.wait_until_healthy()
        tokens = [token(), token(exp=1), forged()["another's payload"]]
        for each in tokens:
            ask(function, each)
        function.terminate()
        log = str(function.read_logs())
        assert not [each for each in [SECRET, *tokens] if each in log]
    assert SECRET not in run_to_end("--help", AUTH="jwt", JWT_SECRET=SECRET).stdout


@pytest.mark.parametrize(
    ("variable", "settings"),
    [
        ("JWT_SECRET", {"AUTH": "jwt", "JWT_SECRET": "swordfish"}),
        ("AUTH", {"JWT_SECRET": SECRET}),
        ("AUTH", {"AUTH": "jwt"}),
        ("JWT_SECRET", {"AUTH": "jwt", "JWT_SECRET": SECRET, "JWT_SECRET_FILE": "/dev/null"}),
        ("JWT_SECRET_FILE", {"AUTH": "jwt", "JWT_SECRET_FILE": "/nowhere"}),
        ("ALLOWED_ROLES", {"ALLOWED_ROLES": "user"}),
        ("JWT_JWKS_URL", {"AUTH": "jwt", "JWT_JWKS_URL": "file:///etc/passwd"}),
    ],
)
def test_a_function_that_would_not_keep_its_callers_out_does_not_start(variable, settings):
    ended = run_to_end(**settings)
    assert ended.returncode == 2
    assert f"{variable}: " in ended.stderr
    assert SECRET not in ended.stderr
    assert "swordfish" not in ended.stderr
