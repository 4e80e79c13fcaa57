"""What `tests/bench admission` found out, and its table in Markdown."""

import datetime
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version

from . import report, wrk
from .admission_servers import NOTHING
from .results import three_digits

PACKAGES = ("fastapi", "uvicorn", "slowapi", "limits", "pyjwt", "redis", "hiredis")
# Of a command a request, below which it is not shown.
RARE = 0.005


@dataclass(frozen=True)
class Run:
    """A server under load."""

    seen: wrk.Seen
    # For a request: calls of each command of Redis.
    redis_calls: dict[str, float]


@dataclass
class Results:
    """All that was found out, by server and setting."""

    rounds: int
    secs: int
    runs: dict[tuple[str, str], list[Run]]
    # Of those that count in Redis: what their scripts call, which they do not send.
    commands_in_scripts: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def median(self, key, of):
        return statistics.median(of(run) for run in self.runs[key])

    def added_us(self, key):
        """CPU time that a request takes more than with nothing set, of each round."""
        pairs = zip(self.runs[key], self.runs[key[0], NOTHING], strict=True)
        return [run.seen.server_us - base.seen.server_us for run, base in pairs]

    def num_failed(self, key):
        return sum(run.seen.num_failed for run in self.runs[key])

    def commands_sent(self, key):
        """How many commands a server sent to Redis for a request."""
        called = self.commands_in_scripts[key]
        return self.median(
            key, lambda run: sum(n for name, n in run.redis_calls.items() if name not in called)
        )

    def other_cpus(self):
        return [run.seen.other_cpus for runs in self.runs.values() for run in runs]


def table(results):
    """Everything a reader needs to judge the figures, then the figures."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    others = results.other_cpus()
    columns = (
        "server",
        "admission",
        "CPU µs",
        "more than with nothing set [least–most]",
        "CPU µs, Redis",
        "requests/s",
        "P99 ms",
        "failed",
        "commands sent to Redis",
    )
    lines = [
        "# What admission costs",
        "",
        f"- {date}, sanderling {report.revision()}, written by `tests/bench admission`",
        report.machine(),
        f"- {versions}, {wrk.version()}",
        _method(results),
        f"- CPUs that others used: median {statistics.median(others):.2f}, most {max(others):.2f}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(_row(results, key))} |" for key in results.runs),
    ]
    return "\n".join(lines) + "\n"


def _method(results):
    return (
        f"- {results.rounds} rounds of {results.secs} s each, in random order; medians of them. CPU"
        " time is that of the server's process for a request, user and system. One thread of wrk"
        f" keeps {wrk.CONNECTIONS} connections busy, on the same CPUs; all are one caller with one"
        " token. Nobody logs. The peer is one worker with uvloop, httptools and hiredis; it counts in"
        " fixed windows and, unlike ours, does not tell of the limit in headers."
    )


def _row(results, key):
    def median(of):
        return three_digits(results.median(key, of))

    has_redis = key in results.commands_in_scripts
    return (
        *key,
        median(lambda run: run.seen.server_us),
        _added(results.added_us(key)) if key[1] != NOTHING else "",
        median(lambda run: run.seen.beside_us) if has_redis else "",
        median(lambda run: run.seen.rps),
        median(lambda run: run.seen.p99_ms),
        str(results.num_failed(key)),
        _commands(results, key) if has_redis else "",
    )


def _added(added_us):
    least, most = three_digits(min(added_us)), three_digits(max(added_us))
    return f"{three_digits(statistics.median(added_us))} [{least}–{most}]"


def _commands(results, key):
    within = results.commands_in_scripts[key]
    calls = {
        name: results.median(key, lambda run, name=name: run.redis_calls.get(name, 0))
        for name in results.runs[key][-1].redis_calls
    }
    sent, called = (
        ", ".join(
            f"{n:.2f} {name}"
            for name, n in calls.items()
            if (name in within) == is_within and n > RARE
        )
        for is_within in (False, True)
    )
    return f"{sent}; its script calls {called}" if called else sent
