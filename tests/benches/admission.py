"""What it costs to check a caller's token and to count the call against a limit, of each request.

    tests/bench admission [--quick]

Ours is `predict` with an engine that answers zeros at once. Its peer is FastAPI with PyJWT and
slowapi, which answers a constant. Each also runs with nothing set: what a request takes more than
there is what admission costs. Redis is a real one, on loopback. All servers run at once and take
turns in random order, so that one at a time has anything to do.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import redis

from .lab import admission_report, engines, texts, wrk
from .lab.admission_report import Results, Run
from .lab.admission_servers import (
    EDDSA,
    FASTAPI,
    HS256,
    IN_MEMORY,
    IN_REDIS,
    OURS,
    RS256,
    all_settings,
    ask,
    running,
    running_redis,
)

HERE = Path(__file__).resolve().parent

GOAL_US = 20
# How many rounds, and how many seconds of each.
ROUNDS, QUICK_ROUNDS = (10, 4), (3, 2)
WARM_UP_SECS = 1
# Requests, one after the other, by which is seen what a script of Redis calls.
MONITORED_REQUESTS = 20


def main():
    rounds, secs, is_whole = read_arguments()
    if missing := engines.build_noop():
        sys.exit("\n".join(missing))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-admission-")))
        bodies = folder / "bodies.jsonl"
        texts.write(texts.sst2()[: texts.BLOCK], bodies)
        store = stack.enter_context(running_redis(folder))
        client = stack.enter_context(redis.Redis(port=store.port))
        settings = stack.enter_context(all_settings(f"redis://127.0.0.1:{store.port}/0"))
        servers = [(each, stack.enter_context(running(each))) for each in settings]
        results = Results(rounds, secs, {setting.key: [] for setting in settings})
        for setting, server in servers:
            wrk.run(server, bodies, WARM_UP_SECS, setting.header_lines)
            if "REDIS_URL" in setting.environment:
                called = commands_in_scripts(client, setting, server)
                results.commands_in_scripts[setting.key] = called
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for setting, server in random.sample(servers, len(servers)):
                run = measure(setting, server, bodies, secs, client, store)
                results.runs[setting.key].append(run)
    table = admission_report.table(results)
    print(table)
    if is_whole:
        (HERE / "admission.md").write_text(table, encoding="utf-8")
    print(json.dumps(summarize(results, is_whole)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench admission")
    parser.add_argument("--quick", action="store_true", help="2 minutes: fewer, shorter rounds")
    is_quick = parser.parse_args().quick
    return *(QUICK_ROUNDS if is_quick else ROUNDS), not is_quick


def say(text):
    """Progress, apart from the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def commands_in_scripts(client, setting, server):
    """Which commands of Redis a server has a script call, at no round trip of their own."""
    called = set()
    with client.monitor() as monitor:
        for _ in range(MONITORED_REQUESTS):
            ask(server, setting.headers)
        client.echo("end")
        for seen in monitor.listen():
            command = seen["command"].split()[0].lower()
            if command == "echo":
                return called
            if seen["client_type"] == "lua":
                called.add(command)


def measure(setting, server, bodies, secs, client, store):
    """One run, and what Redis was called for."""
    calls_before = redis_calls(client)
    seen = wrk.run(server, bodies, secs, setting.header_lines, beside=[store.pid])
    return Run(
        seen=seen,
        redis_calls={
            name: (calls - calls_before.get(name, 0)) / seen.num_requests
            for name, calls in redis_calls(client).items()
        },
    )


def redis_calls(client):
    """By the name of a command, those that scripts call among them."""
    seen = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in seen.items()}


def summarize(results, is_whole):
    """The line of JSON; ratios above 1 mean ours is better."""

    def added(server, name):
        return statistics.median(results.added_us((server, name)))

    ours = {name: added(OURS, name) for name in (HS256, IN_MEMORY, IN_REDIS, EDDSA, RS256)}
    return {
        "bench": "admission",
        "whole": is_whole,
        "failed_requests": sum(results.num_failed(key) for key in results.runs),
        "cpu_us_no_redis": round(ours[IN_MEMORY], 2),
        "cpu_us_goal": GOAL_US,
        "cpu_us_redis": round(ours[IN_REDIS], 2),
        "cpu_us_hs256": round(ours[HS256], 2),
        "cpu_us_eddsa": round(ours[EDDSA], 2),
        "cpu_us_rs256": round(ours[RS256], 2),
        "vs_fastapi": round(added(FASTAPI, IN_MEMORY) / ours[IN_MEMORY], 2),
        "vs_fastapi_redis": round(added(FASTAPI, IN_REDIS) / ours[IN_REDIS], 2),
        "redis_commands_per_request": round(results.commands_sent((OURS, IN_REDIS)), 3),
    }


if __name__ == "__main__":
    main()
