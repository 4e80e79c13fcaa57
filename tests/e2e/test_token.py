"""`token`: from a password to a token that functions take."""

import contextlib
import statistics
import subprocess
import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from function import PREDICT, SANDERLING, TOKEN, run_to_end, running
from tokens import ED25519, RSA, SECRET

PASSWORD = "correct horse battery staple"
TEXT = {"text": "What a film!"}


def line(user: str, role: str) -> str:
    """A line for USERS_FILE."""
    command = [SANDERLING, "token", "hash", "--user", user, "--role", role]
    hashed = subprocess.run(
        command, check=True, input=f"{PASSWORD}\n", capture_output=True, text=True, timeout=60
    )
    return hashed.stdout


def pem(*keys) -> str:
    kind = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return "".join(key.private_bytes(*kind).decode() for key in keys)


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "users"
    file.write_text(f"# Who may log in.\n\n{line('ada', 'premium')}")
    return file


@contextlib.contextmanager
def issuing(users, **settings):
    with running(binary=TOKEN, USERS_FILE=users, **settings) as function:
        yield function


@pytest.fixture(scope="module")
def function(users):
    with issuing(users, JWT_SECRET=SECRET, LOGIN_LIMIT="off") as function:
        yield function


def log_in(function, username="ada", password=PASSWORD, **more) -> httpx.Response:
    return function.post("/login", username=username, password=password, **more)


def ask(function, bearer: str) -> int:
    headers = {"authorization": f"Bearer {bearer}"}
    return httpx.post(f"{function.url}/predict", json=TEXT, headers=headers).status_code


def test_a_password_gives_a_token(function):
    answer = log_in(function)
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"], body["role"]) == ("bearer", 86_400, "premium")
    assert jwt.get_unverified_header(body["access_token"]) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(body["access_token"], SECRET, ["HS256"])
    assert (claims["sub"], claims["role"]) == ("ada", "premium")
    assert claims["exp"] - claims["iat"] == 86_400


def test_a_form_gives_one_too(function):
    form = {"username": "ada", "password": PASSWORD, "grant_type": "password", "scope": ""}
    answer = httpx.post(f"{function.url}/login", data=form)
    assert answer.json()["role"] == "premium"


def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(function):
    wrong = [log_in(function, password="wrong"), log_in(function, username="eve")]
    assert {answer.status_code for answer in wrong} == {401}
    assert wrong[0].content == wrong[1].content
    assert wrong[0].json()["error"]["code"] == "bad_credentials"
    document = httpx.get(f"{function.url}/openapi.json").json()
    assert "401" in document["paths"]["/login"]["post"]["responses"]


def test_a_wrong_name_and_a_wrong_password_cost_the_same_time(function):
    secs = {"ada": [], "eve": []}
    for _ in range(40):
        for name, times in secs.items():
            started = time.perf_counter()
            assert log_in(function, username=name, password="wrong").status_code == 401
            times.append(time.perf_counter() - started)
    for name, times in secs.items():
        quartiles = [round(quartile * 1e3, 2) for quartile in statistics.quantiles(times)]
        print(f"{name}: quartiles {quartiles} ms")
    # Without a hash to check, a name that is not there would be refused in a tenth of the time.
    known, unknown = (statistics.median(times) for times in secs.values())
    assert 0.75 < unknown / known < 1.33


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", '{"username":"ada"}', 422),
        ("application/json", '{"username":"ada","password":"x","otp":1}', 422),
        ("application/json", '{"username":["ada"],"password":"x"}', 422),
        ("application/json", "{", 400),
        ("application/x-www-form-urlencoded", "username=ada", 422),
        ("text/plain", "username=ada&password=x", 415),
    ],
)
def test_what_is_no_log_in_is_told_so(function, content_type, body, status):
    headers = {"content-type": content_type}
    answer = httpx.post(f"{function.url}/login", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_shared_secret_is_not_published(function):
    answer = httpx.get(f"{function.url}/.well-known/jwks.json")
    assert answer.json() == {"keys": []}


def test_users_are_read_again(tmp_path):
    file = tmp_path / "users"
    file.write_text(line("ada", "premium"))
    with issuing(file, JWT_SECRET=SECRET) as function:
        assert log_in(function, username="bob").status_code == 401
        file.write_text(line("bob", "user"))
        assert log_in(function, username="bob").json()["role"] == "user"
        assert log_in(function).status_code == 401
        file.write_text("broken")
        assert log_in(function, username="bob").status_code == 200


def test_log_ins_are_limited_by_name_and_by_address(users):
    with issuing(users, JWT_SECRET=SECRET, LOGIN_LIMIT="3/min") as function:
        attempts = [log_in(function, username="eve").status_code for _ in range(4)]
        assert attempts == [401, 401, 401, 429]
        # The address has used up its own.
        assert log_in(function).status_code == 429
    settings = {"LOGIN_LIMIT": "3/min", "TRUSTED_PROXIES": "127.0.0.1"}
    with issuing(users, JWT_SECRET=SECRET, **settings) as function:
        body = {"username": "ada", "password": "guess"}
        for number, status in enumerate([401, 401, 401, 429]):
            headers = {"x-forwarded-for": f"192.0.2.{number}"}
            answer = httpx.post(f"{function.url}/login", json=body, headers=headers)
            assert answer.status_code == status
        assert int(answer.headers["retry-after"]) > 50


@pytest.mark.parametrize(("key", "algorithm"), [(ED25519, "EdDSA"), (RSA, "RS256")])
def test_functions_take_tokens_by_published_keys(users, key, algorithm):
    settings = {"JWT_ISSUER": "us", "JWT_AUDIENCE": "here", "TOKEN_LIFETIME_SECS": 60}
    with issuing(users, JWT_PRIVATE_KEY=pem(key), **settings) as issuer:
        url = f"{issuer.url}/.well-known/jwks.json"
        (published,) = httpx.get(url).json()["keys"]
        assert not published.keys() & {"d", "p", "q", "dp", "dq", "qi", "k"}
        answer = log_in(issuer).json()
        assert answer["expires_in"] == 60
        header = jwt.get_unverified_header(answer["access_token"])
        assert header == {"alg": algorithm, "typ": "JWT", "kid": published["kid"]}
        # As another's library reads it.
        public = jwt.PyJWK(published).key
        claims = jwt.decode(
            answer["access_token"], public, [algorithm], audience="here", issuer="us"
        )
        assert claims["sub"] == "ada"
        checks = {"JWT_JWKS_URL": url, "JWT_ISSUER": "us", "JWT_AUDIENCE": "here"}
        with running(binary=PREDICT, AUTH="jwt", **checks) as predict:
            predict.wait_until_healthy()
            assert ask(predict, answer["access_token"]) == 200


def test_a_new_key_takes_over_while_tokens_of_the_old_one_hold(users):
    with issuing(users, JWT_PRIVATE_KEY=pem(RSA)) as issuer:
        port, url = issuer.port, f"{issuer.url}/.well-known/jwks.json"
        old = log_in(issuer).json()["access_token"]
        with running(binary=PREDICT, AUTH="jwt", JWT_JWKS_URL=url) as predict:
            predict.wait_until_healthy()
            assert ask(predict, old) == 200
            issuer.terminate()
            with issuing(users, JWT_PRIVATE_KEY=pem(ED25519, RSA), PORT=port) as rotated:
                time.sleep(10)  # Until keys may be fetched again.
                new = log_in(rotated).json()["access_token"]
                assert jwt.get_unverified_header(new)["alg"] == "EdDSA"
                assert [ask(predict, each) for each in (new, old)] == [200, 200]


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("JWT_PRIVATE_KEY: neither it nor JWT_SECRET is set", {}),
        ("JWT_SECRET: has 9 bytes", {"JWT_SECRET": "swordfish"}),
        (
            "JWT_PRIVATE_KEY: set, and JWT_SECRET too",
            {"JWT_SECRET": SECRET, "JWT_PRIVATE_KEY": "x"},
        ),
        ("there is no key in it", {"JWT_PRIVATE_KEY": "swordfish"}),
        ("LOGIN_LIMIT: ", {"JWT_SECRET": SECRET, "LOGIN_LIMIT": "often"}),
        ("/nowhere: cannot be read", {"JWT_SECRET": SECRET, "USERS_FILE": "/nowhere"}),
        ("USERS_FILE: not set", {"JWT_SECRET": SECRET, "USERS_FILE": ""}),
    ],
)
def test_bad_settings_are_named_at_the_start(users, message, settings):
    ended = run_to_end(binary=TOKEN, **{"USERS_FILE": users} | settings)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "swordfish" not in ended.stderr


def test_passwords_and_keys_are_never_shown(users):
    with issuing(users, JWT_SECRET=SECRET, RUST_LOG="trace") as function:
        issued = log_in(function).json()["access_token"]
        log_in(function, password="swordfish")
        function.terminate()
        log = str(function.read_logs())
        assert not [each for each in (SECRET, PASSWORD, "swordfish", issued) if each in log]
