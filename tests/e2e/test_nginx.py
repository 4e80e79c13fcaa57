"""Several instances behind nginx: who answers, and what callers see when an instance fails."""

import concurrent.futures
import contextlib
import signal
import threading
import time

import httpx
import pytest
from balancer import balanced, free_ports
from function import running
from stub import stubs

NUM_CALLERS = 8
TEXT = "An uneven film that never quite decides what it wants to be. " * 10
LONG = TEXT * 8

# Longer than anything here takes on a busy machine.
WAIT_SECS = 120


@pytest.fixture
def instances():
    """Three ready `predict`s, each on a port that it can be started on again."""
    with contextlib.ExitStack() as stack:
        functions = [
            stack.enter_context(running(PORT=port, NUM_THREADS=1)) for port in free_ports(3)
        ]
        for function in functions:
            function.wait_until_healthy()
        yield functions


@pytest.fixture
def three_stubs():
    with stubs(3) as servers:
        yield servers


def ports(servers) -> list[int]:
    return [server.port for server in servers]


def wait_until(holds) -> None:
    deadline = time.monotonic() + WAIT_SECS
    while not holds():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.02)


@contextlib.contextmanager
def calling(url: str):
    """Callers with a connection each that ask one text after another; their answers as they come.

    Fails at the end if one of them had no answer.
    """
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=WAIT_SECS) as client:
            while not stop.is_set():
                answers.append(client.post(f"{url}/predict", json={"text": TEXT}))

    with concurrent.futures.ThreadPoolExecutor(NUM_CALLERS) as pool:
        calls = [pool.submit(call) for _ in range(NUM_CALLERS)]
        try:
            yield answers
        finally:
            stop.set()
    for ended in calls:
        ended.result()


def more(answers: list, count: int) -> None:
    """Waits for so many more answers."""
    enough = len(answers) + count
    wait_until(lambda: len(answers) >= enough)


def retried(balancer, statuses: str) -> int:
    """Requests for which instances gave `statuses`, one after another."""
    return sum(line["answers"] == statuses for line in balancer.requests())


def test_a_killed_instance_costs_no_caller_an_answer_and_comes_back(instances, tmp_path):
    killed = instances[0]
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(balanced(tmp_path, ports(instances)))
        with calling(balancer.url) as answers:
            more(answers, 200)
            killed.process.kill()
            killed.process.wait()
            more(answers, 200)
            stack.enter_context(running(PORT=killed.port, NUM_THREADS=1)).wait_until_healthy()
            restarted_at = len(balancer.requests())
            wait_until(
                lambda: any(
                    line["tried"] == f"127.0.0.1:{killed.port}" and line["status"] == 200
                    for line in balancer.requests()[restarted_at:]
                )
            )
            more(answers, 100)
        assert {answer.status_code for answer in answers} == {200}
        assert retried(balancer, "502, 200") > 0


def test_an_instance_that_drains_costs_no_caller_an_answer(instances, tmp_path):
    with balanced(tmp_path, ports(instances)) as balancer:
        with calling(balancer.url) as answers:
            more(answers, 200)
            assert instances[0].terminate() == 0
            more(answers, 200)
        assert {answer.status_code for answer in answers} == {200}
        assert retried(balancer, "503, 200") > 0


def test_others_answer_for_an_instance_that_hangs(instances, tmp_path):
    shorter = {"proxy_read_timeout 60s;": "proxy_read_timeout 3s;"}
    with balanced(tmp_path, ports(instances), shorter) as balancer:
        with calling(balancer.url) as answers:
            more(answers, 50)
            instances[0].process.send_signal(signal.SIGSTOP)
            wait_until(lambda: retried(balancer, "504, 200") > 0)
            more(answers, 100)
        assert {answer.status_code for answer in answers} == {200}


def test_a_dead_instance_is_left_alone_for_a_while(instances, tmp_path):
    instances[2].process.kill()
    instances[2].process.wait()
    with (
        balanced(tmp_path, ports(instances)) as balancer,
        httpx.Client(timeout=WAIT_SECS) as client,
    ):
        started = time.monotonic()
        for _ in range(60):
            answer = client.post(f"{balancer.url}/predict", json={"text": "fine"})
            assert answer.status_code == 200
        periods = 1 + (time.monotonic() - started) // 10
        wait_until(lambda: len(balancer.requests()) == 60)
        # A quarter of the requests, 15, would be its share.
        assert 0 < retried(balancer, "502, 200") <= 3 * periods


def test_idle_instances_share_requests_by_weight(instances, tmp_path):
    with (
        balanced(tmp_path, ports(instances)) as balancer,
        httpx.Client(timeout=WAIT_SECS) as client,
    ):
        for _ in range(80):
            client.post(f"{balancer.url}/predict", json={"text": "fine"})
    for function in instances:
        assert function.terminate() == 0
    answered = [
        sum(line.get("route") == "/predict" for line in function.read_logs())
        for function in instances
    ]
    assert sum(answered) == 80
    assert answered == pytest.approx([30, 30, 20], abs=4)


def test_a_busy_instance_gets_no_more_while_others_are_idle(three_stubs, tmp_path):
    with (
        balanced(tmp_path, ports(three_stubs)) as balancer,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        held = pool.submit(httpx.post, f"{balancer.url}/hold", json={}, timeout=WAIT_SECS)
        wait_until(lambda: any(stub.seen for stub in three_stubs))
        answers = [httpx.post(f"{balancer.url}/echo", json={}).json()["port"] for _ in range(20)]
        for stub in three_stubs:
            stub.release.set()
        assert held.result().json()["port"] not in answers
        assert len(set(answers)) == 2


def test_a_request_that_fails_everywhere_takes_no_instance_out(three_stubs, tmp_path):
    with balanced(tmp_path, ports(three_stubs)) as balancer:
        refused = httpx.post(f"{balancer.url}/vanish", json={})
        assert refused.status_code == 502
        assert [len(stub.seen) for stub in three_stubs] == [1, 1, 1]
        answers = [httpx.post(f"{balancer.url}/echo", json={}) for _ in range(8)]
        assert {answer.json()["port"] for answer in answers} == set(ports(three_stubs))


def test_an_instance_learns_who_calls(three_stubs, tmp_path):
    with balanced(tmp_path, ports(three_stubs)) as balancer:
        sent = {
            "host": "sentiment.example",
            "x-forwarded-for": "203.0.113.7",
            "x-request-id": "a-1",
        }
        sent["x-real-ip"] = "203.0.113.7"
        httpx.post(f"{balancer.url}/echo", json={}, headers=sent)
        (seen,) = [headers for stub in three_stubs for headers in stub.seen]
    assert seen["host"] == "sentiment.example"
    assert seen.get_all("x-real-ip") == ["127.0.0.1"]
    assert seen["x-forwarded-for"] == "203.0.113.7, 127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-request-id"] == "a-1"
    # Else nginx would say `close`, and each request cost a connection.
    assert "connection" not in seen


@pytest.mark.parametrize("sent", [None, "", "with space", "a" * 129, "a", "a" * 128])
def test_all_instances_see_one_request_id_by_the_functions_rule(three_stubs, tmp_path, sent):
    with balanced(tmp_path, ports(three_stubs)) as balancer:
        headers = {} if sent is None else {"x-request-id": sent}
        answer = httpx.post(f"{balancer.url}/vanish", json={}, headers=headers)
    seen = [headers["x-request-id"] for stub in three_stubs for headers in stub.seen]
    assert len(seen) == 3 and len(set(seen)) == 1
    assert (seen[0] == sent) == (sent in ("a", "a" * 128))
    assert answer.headers.get_list("x-request-id") == [seen[0]]


def test_a_function_answers_with_the_id_that_it_was_given(instances, tmp_path):
    with balanced(tmp_path, ports(instances)) as balancer:
        headers = {"x-request-id": "a-1"}
        answer = httpx.get(f"{balancer.url}/health", headers=headers)
        assert answer.status_code == 200
        assert answer.headers.get_list("x-request-id") == ["a-1"]


def test_full_instances_refuse_and_nobody_else_is_asked(tmp_path):
    with contextlib.ExitStack() as stack:
        functions = [
            stack.enter_context(running(MAX_QUEUE_REQUESTS=1, MAX_BATCH_REQUESTS=1, NUM_THREADS=1))
            for _ in range(3)
        ]
        for function in functions:
            function.wait_until_healthy()
        balancer = stack.enter_context(balanced(tmp_path, ports(functions)))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(64))

        def ask(_) -> httpx.Response:
            return httpx.post(f"{balancer.url}/predict", json={"text": LONG}, timeout=WAIT_SECS)

        answers = list(pool.map(ask, range(128)))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"
        wait_until(lambda: len(balancer.requests()) == 128)
        assert {line["answers"] for line in balancer.requests()} == {"200", "429"}


def test_bodies_have_the_functions_limit_and_its_answer(instances, tmp_path):
    def ask(url: str, length: int) -> httpx.Response:
        frame = b'{"text":""}'
        body = b'{"text":"' + b"a" * (length - len(frame)) + b'"}'
        headers = {"content-type": "application/json"}
        return httpx.post(f"{url}/predict", content=body, headers=headers, timeout=WAIT_SECS)

    with balanced(tmp_path, ports(instances)) as balancer:
        whole = ask(balancer.url, 2_000_000)
        assert (whole.status_code, whole.json()["error"]["code"]) == (422, "too_long")
        refused = ask(balancer.url, 2_000_001)
        assert refused.status_code == 413
        assert refused.headers["content-type"] == "application/json"
        assert refused.json() == ask(instances[0].url, 2_000_001).json()


def test_a_body_that_does_not_fit_in_memory_is_sent_again(three_stubs, tmp_path):
    for stub in three_stubs[:2]:
        stub.vanish_once = True
    with balanced(tmp_path, ports(three_stubs)) as balancer:
        body = b"a" * 1_000_000
        # The first two answer nothing, so the third is asked at the latest.
        answers = [httpx.post(f"{balancer.url}/echo", content=body) for _ in range(3)]
        assert [answer.json()["body_bytes"] for answer in answers] == [1_000_000] * 3
        assert not any(stub.vanish_once for stub in three_stubs)


def test_an_answer_that_streams_is_passed_on_as_it_comes(three_stubs, tmp_path):
    with (
        balanced(tmp_path, ports(three_stubs)) as balancer,
        httpx.stream("POST", f"{balancer.url}/stream", json={}, timeout=30) as answer,
    ):
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        for stub in three_stubs:
            stub.release.set()
        assert b"".join(pieces) == b"second"


@pytest.mark.parametrize(
    ("path", "status", "code", "retry_after"),
    [("/vanish", 502, "no_instance", "1"), ("/hold", 504, "timeout", None)],
)
def test_nginxs_own_answers_have_the_shape_of_the_functions(
    three_stubs, tmp_path, path, status, code, retry_after
):
    shorter = {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"}
    with balanced(tmp_path, ports(three_stubs), shorter) as balancer:
        answer = httpx.post(f"{balancer.url}{path}", json={}, timeout=WAIT_SECS)
    for stub in three_stubs:
        stub.release.set()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == code and answer.json()["error"]["message"]
    assert answer.headers.get("retry-after") == retry_after


def test_connections_to_instances_are_kept(three_stubs, tmp_path):
    with balanced(tmp_path, ports(three_stubs)) as balancer, httpx.Client() as client:
        for _ in range(40):
            client.post(f"{balancer.url}/echo", json={})
        assert sum(stub.num_connections for stub in three_stubs) == 3
