"""Rate limits of one process, counted in memory and in Redis alike, and whose they are."""

import contextlib
import math
import time

import pytest
from callers import Caller, limited, standing, wait_secs
from function import run_to_end, running
from redis_server import redis_server

LIMITS = "anonymous=2/h,user=3/min,premium=5/min,slider=2/2s,reader=10 tokens/h,eager=2/s,eager=3/h"
ROLES = "anonymous,user,premium,slider,reader,eager"
# They ask no model.
GETS = ["/health", "/ping", "/docs", "/openapi.json", "/v2/health/ready", "/info", "/v1/models"]


@pytest.fixture(scope="module", params=["memory", "redis"])
def function(request):
    """`predict` with `LIMITS`, for callers whose names no other test uses."""
    with contextlib.ExitStack() as stack:
        settings = {}
        if request.param == "redis":
            server = stack.enter_context(redis_server())
            settings = {"REDIS_URL": server.url, "REDIS_FAILURE": "deny", "REDIS_TIMEOUT_MS": 1000}
        function = stack.enter_context(limited(LIMITS, ALLOWED_ROLES=ROLES, **settings))
        function.wait_until_healthy()
        yield function


def remaining(answer) -> int:
    return standing(answer)[1]


def statuses(caller, function, count: int) -> list[int]:
    return [caller.ask(function).status_code for _ in range(count)]


def test_headers_count_down_to_a_refusal(function):
    ada = Caller("counts down")
    for left in (2, 1, 0):
        answer = ada.ask(function)
        assert answer.status_code == 200
        assert standing(answer)[:2] == (3, left)
        assert 50 <= standing(answer)[2] <= 60
    refusal = ada.ask(function)
    assert refusal.status_code == 429
    assert refusal.json()["error"]["code"] == "rate_limited"
    limit, left, reset = standing(refusal)
    assert (limit, left) == (3, 0) and 50 <= reset <= 60
    assert refusal.headers["retry-after"] == str(reset) == str(math.ceil(wait_secs(refusal)))


def test_a_place_is_free_when_a_refusal_says_and_not_before(function):
    ada = Caller("waits", "slider")
    first_sent = time.monotonic()
    assert statuses(ada, function, 2) == [200, 200]
    refusal = ada.ask(function)
    free_at = time.monotonic() + wait_secs(refusal)
    # Whoever is refused does not count, and so does not put it off.
    while (answer := ada.ask(function)).status_code == 429:
        assert time.monotonic() < free_at + 0.5
        time.sleep(0.05)
    assert answer.status_code == 200
    assert time.monotonic() - first_sent >= 2


def test_the_window_slides(function):
    ada = Caller("slides", "slider")
    assert ada.ask(function).status_code == 200
    time.sleep(1)
    assert statuses(ada, function, 2) == [200, 429]
    time.sleep(wait_secs(ada.ask(function)))
    # The second one is still in it: one place is free, not two.
    assert statuses(ada, function, 2) == [200, 429]
    assert 0 < wait_secs(ada.ask(function)) < 1.5


def test_roles_have_limits_of_their_own(function):
    assert standing(Caller("two roles", "user").ask(function))[:2] == (3, 2)
    assert standing(Caller("two roles", "premium").ask(function))[:2] == (5, 4)


def test_callers_are_told_apart_by_subject_wherever_they_are(function):
    here, there = Caller("travels"), Caller("travels", address="127.0.0.2")
    assert [remaining(caller.ask(function)) for caller in (here, there, here)] == [2, 1, 0]
    assert there.ask(function).status_code == 429
    assert remaining(Caller("stays").ask(function)) == 2


def test_callers_without_a_token_are_told_apart_by_address(function):
    assert statuses(Caller(address="127.0.0.3"), function, 3) == [200, 200, 429]
    assert statuses(Caller(address="127.0.0.4"), function, 1) == [200]
    # Named like an address, but not one.
    assert remaining(Caller("127.0.0.3", "anonymous").ask(function)) == 1


def test_what_asks_no_model_does_not_count(function):
    ada = Caller("looks around")
    for path in GETS:
        assert ada.get(function, path).status_code == 200, path
    assert remaining(ada.ask(function)) == 2
    for path in GETS:
        assert ada.get(function, path).status_code == 200, path
    assert remaining(ada.ask(function)) == 1


def test_refused_tokens_do_not_count_but_bad_bodies_do(function):
    ada = Caller("makes mistakes")
    stranger = Caller(address="127.0.0.5")
    for headers in ({"authorization": "Bearer x"}, {"authorization": "Basic YTpi"}):
        assert stranger.ask(function, headers=headers).status_code == 401
        assert ada.ask(function, headers=headers).status_code == 401
    assert remaining(stranger.ask(function)) == 1
    mistake = ada.ask(function, text="")
    assert mistake.status_code == 422
    assert standing(mistake)[:2] == (3, 2)
    assert remaining(ada.ask(function)) == 1


def test_tokens_that_the_model_reads_count(function):
    ada = Caller("reads", "reader")
    num_tokens = 0
    while (answer := ada.ask(function)).status_code == 200:
        # What it takes is known when it is done: there has to be something left before.
        assert num_tokens < 10
        num_tokens += int(answer.headers["x-compute-tokens"])
    assert num_tokens >= 10
    assert answer.json()["error"]["code"] == "rate_limited"
    assert standing(answer)[:2] == (10, 0)
    assert 3500 < wait_secs(answer) <= 3600


def test_one_long_text_takes_all_tokens(function):
    ada = Caller("reads much", "reader")
    assert ada.ask(function, text="good " * 100).status_code == 200
    assert ada.ask(function).status_code == 429


def test_all_limits_of_a_role_hold(function):
    ada = Caller("is eager", "eager")
    assert statuses(ada, function, 2) == [200, 200]
    refusal = ada.ask(function)
    assert standing(refusal)[:2] == (2, 0) and wait_secs(refusal) <= 1
    time.sleep(1)
    # Refused by one limit, it has not counted for the other.
    assert statuses(ada, function, 1) == [200]
    refusal = ada.ask(function)
    assert standing(refusal)[:2] == (3, 0) and wait_secs(refusal) > 3500


def test_roles_that_are_not_listed_have_the_lowest_limit():
    with limited("premium=100/2s,user=3/min,staff=5/min") as function:
        function.wait_until_healthy()
        for role in ("guest", "User", None):
            assert standing(Caller("somebody", role).ask(function))[:2] == (3, 2), role


def test_without_limits_no_header_speaks_of_them(predict):
    assert not [name for name in predict.predict(text="good").headers if "ratelimit" in name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("RATE_LIMITS", value)
            for value in (
                "user",
                "user=10",
                "=10/min",
                "user=0/min",
                "user=-1/min",
                "user=1.5/min",
                "user=10/week",
                "user=10/0s",
                "user=10 words/min",
                "user=10/min;premium=100/min",
            )
        ),
        *(
            ("REDIS_URL", value)
            for value in ("127.0.0.1:6379", "http://127.0.0.1", "redis://127.0.0.1:port")
        ),
        ("REDIS_URL_FILE", "/nowhere/redis-url"),
        ("REDIS_FAILURE", "maybe"),
        *(("TRUSTED_PROXIES", value) for value in ("nginx", "10.0.0.0/33", "10.0.0.1:80")),
    ],
)
def test_a_bad_setting_is_named_at_the_start(name, value):
    result = run_to_end(**{"RATE_LIMITS": "user=10/min", name: value})
    assert result.returncode == 2
    assert result.stderr.startswith(f"bad settings: {name}: "), result.stderr


def test_all_bad_limits_are_named_at_once_without_the_password():
    bad = {
        "RATE_LIMITS": "user=10",
        "REDIS_URL": "http://ada:goldfish@127.0.0.1",
        "REDIS_FAILURE": "maybe",
        "TRUSTED_PROXIES": "nginx",
    }
    result = run_to_end(**bad)
    assert result.returncode == 2
    assert all(f"{name}: " in result.stderr for name in bad), result.stderr
    assert "goldfish" not in result.stdout + result.stderr


# Whose address counts


@pytest.fixture(scope="module")
def behind_proxies():
    """`predict` that answers each address once and believes proxies, 127.0.0.2 not among them."""
    proxies = "127.0.0.1, 10.0.0.0/8, 2001:db8:ffff::/48"
    with running(RATE_LIMITS="anonymous=1/h", TRUSTED_PROXIES=proxies) as function:
        function.wait_until_healthy()
        yield function


def forwarded(function, *values: str, address: str = "127.0.0.1") -> int:
    """The status of an answer to a request with these values of X-Forwarded-For."""
    headers = [("x-forwarded-for", value) for value in values]
    return Caller(address=address).ask(function, headers=headers).status_code


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["192.0.2.1"], ["192.0.2.1"]),
        (["6.6.6.6, 192.0.2.2"], ["7.7.7.7,192.0.2.2"]),
        (["6.6.6.6", "192.0.2.3"], ["7.7.7.7", "192.0.2.3"]),
        (["10.6.6.6, 192.0.2.4"], ["127.0.0.1, 192.0.2.4"]),
        (["192.0.2.5, 10.1.2.3"], ["192.0.2.5", "10.1.2.4, 10.1.2.5"]),
        (["192.0.2.6, 2001:db8:ffff::1"], ["192.0.2.6"]),
        (["192.0.2.7:56"], ["192.0.2.7:57"]),
        (["::ffff:192.0.2.8"], ["192.0.2.8"]),
        (["[2001:db8:0:1::1]:443"], ["[2001:db8:0:1::1]"]),
        (["2001:db8:0:2::1"], ["2001:db8:0:2:ffff:ffff:ffff:ffff"]),
        (["6.6.6.6, <script>, 10.9.0.1"], ["7.7.7.7, unknown, 10.9.0.1"]),
        (["6.6.6.6,, 10.9.0.2"], ["256.1.1.1, 10.9.0.2"]),
        (["6.6.6.6, " * 200 + "192.0.2.9"], ["192.0.2.9"]),
    ],
    ids=[
        "the same address",
        "made up on the left",
        "made up in another header",
        "a proxy made up",
        "proxies on the right",
        "an IPv6 proxy",
        "another port",
        "IPv4 in IPv6",
        "IPv6 with and without a port",
        "the same /64",
        "garbage before a proxy",
        "nothing before a proxy",
        "very many",
    ],
)
def test_these_are_one_caller(behind_proxies, one, other):
    assert forwarded(behind_proxies, *one) == 200
    assert forwarded(behind_proxies, *other) == 429


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["198.51.100.1"], ["198.51.100.2"]),
        (["198.51.100.3, 198.51.100.4"], ["198.51.100.3"]),
        (["198.51.100.5", "10.0.0.1"], ["198.51.100.6", "10.0.0.1"]),
        (["2001:db8:1:1::1"], ["2001:db8:1:2::1"]),
    ],
    ids=["two addresses", "the rightmost counts", "behind one proxy", "two /64"],
)
def test_these_are_two_callers(behind_proxies, one, other):
    assert forwarded(behind_proxies, *one) == 200
    assert forwarded(behind_proxies, *other) == 200


def test_who_is_no_proxy_cannot_say_who_it_is(behind_proxies):
    assert forwarded(behind_proxies, "203.0.113.1", address="127.0.0.2") == 200
    assert forwarded(behind_proxies, "203.0.113.2", address="127.0.0.2") == 429
    assert forwarded(behind_proxies, address="127.0.0.2") == 429
    assert forwarded(behind_proxies, "203.0.113.1") == 200


def test_without_proxies_nobody_can_say_who_it_is():
    with running(RATE_LIMITS="anonymous=1/h") as function:
        function.wait_until_healthy()
        assert forwarded(function, "203.0.113.1") == 200
        for made_up in ("203.0.113.2", "127.0.0.1", "10.0.0.1, 203.0.113.3", ""):
            assert forwarded(function, made_up) == 429
        assert forwarded(function, "203.0.113.1", address="127.0.0.2") == 200
