"""Callers of functions that have limits: one by one, or a crowd at once."""

import asyncio
import bisect
import json
import math
import random
import time
from dataclasses import dataclass

import httpx
from function import Function, running
from tokens import SECRET, token


def limited(rate_limits: str, **settings):
    """`predict` for callers with a token, within `rate_limits`."""
    return running(AUTH="jwt", JWT_SECRET=SECRET, RATE_LIMITS=rate_limits, **settings)


class Caller:
    """Asks functions as a subject in a role, or without a token, from an address of loopback."""

    def __init__(
        self, subject: str | None = None, role: str | None = "user", address: str = "127.0.0.1"
    ):
        headers = {"authorization": f"Bearer {token(sub=subject, role=role)}"} if subject else {}
        transport = httpx.HTTPTransport(local_address=address)
        self._client = httpx.Client(headers=headers, transport=transport, timeout=60)

    def ask(self, function: Function, text: str = "good", headers=()) -> httpx.Response:
        body = {"text": text}
        return self._client.post(f"{function.url}/predict", json=body, headers=headers)

    def get(self, function: Function, path: str) -> httpx.Response:
        return self._client.get(f"{function.url}{path}")


def standing(answer: httpx.Response) -> tuple[int, int, int]:
    """Limit, what is left of it, and the seconds until there is more."""
    headers = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
    return tuple(int(answer.headers[name]) for name in headers)


def wait_secs(refusal: httpx.Response) -> float:
    """How long a refused caller is asked to wait."""
    assert refusal.status_code == 429, refusal.text
    return int(refusal.headers["retry-after-ms"]) / 1000


@dataclass(frozen=True)
class Answer:
    """An answer of the function, decided on between two moments of `time.monotonic`."""

    status: int
    sent: float
    received: float


async def crowd(
    ports: list[int], callers_each: int, caller_token: str, pause_secs: float, secs: float
) -> list[Answer]:
    """All answers to callers of each port, who ask for `secs`, with pauses of 0 to `pause_secs`."""
    body = json.dumps({"text": "good"})
    request = (
        f"POST /predict HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {caller_token}\r\n"
        "content-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    answers = []
    end = time.monotonic() + secs

    async def call(port: int) -> None:
        while True:
            await asyncio.sleep(random.uniform(0, pause_secs))
            if time.monotonic() >= end:
                return
            answers.append(await _ask(port, request))

    await asyncio.gather(*(call(port) for port in ports for _ in range(callers_each)))
    return answers


async def _ask(port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = time.monotonic()
    writer.write(request)
    status_line = await reader.readline()
    received = time.monotonic()
    await reader.read()
    writer.close()
    return Answer(int(status_line.split()[1]), sent, received)


def shortest_secs(admitted: list[Answer], limit: int) -> float:
    """The shortest time in which, for certain, more than `limit` were admitted.

    Each was admitted after it was sent and before its answer was received, so from the first that
    was sent to the last that was received is never shorter than the time they were admitted in.
    """
    shortest = math.inf
    received = []
    for answer in sorted(admitted, key=lambda answer: answer.sent, reverse=True):
        bisect.insort(received, answer.received)
        # Of those sent no sooner, the ones that were answered first.
        if len(received) > limit:
            shortest = min(shortest, received[limit] - answer.sent)
    return shortest
