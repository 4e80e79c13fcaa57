"""What `tests/bench soak` samples, and its table and chart."""

import datetime
import time
from dataclasses import dataclass

from . import lines, processes
from .report import machine, revision


@dataclass(frozen=True)
class Sample:
    """Memory of the function at a time."""

    secs: float
    pss_bytes: int
    # Of that what no file is behind: a leak is here.
    anonymous_bytes: int

    @classmethod
    def take(cls, pids, began):
        pss, anonymous = processes.memory(pids), processes.memory(pids, "Anonymous")
        return cls(time.monotonic() - began, pss, anonymous)


def table(results):
    """Everything a reader needs to judge the figures, then the figures."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    title = "# Memory under load"
    kind = "" if results.is_whole else " (a restricted run)"
    return "\n".join([f"{title}{kind}", "", *_header(date), "", *_rows(results)]) + "\n"


def _header(date):
    yield f"- {date}, sanderling {revision()}, written by `tests/bench soak`"
    yield machine()
    yield (
        "- One `predict` with the bundled model and its defaults. Cycles: a closed loop of callers"
        " with texts of 3 to 512 tokens, mistakes among them, and callers who hang up, before"
        " their answer or within their body; then an open loop at three times what it answers;"
        " then a rest. Growth compares medians of rests: the last fifth of all with the second,"
        " after a fifth to warm up. MB of 10⁶ bytes."
    )


def _rows(results):
    yield "| | |"
    yield "|---|---|"
    yield f"| minutes | {results.minutes:g} |"
    yield f"| requests | {results.num_requests:,} |"
    answers = sorted(results.answers.items())
    yield f"| answers | {', '.join(f'{count:,} × {status}' for status, count in answers)} |"
    yield f"| callers who hung up | {results.num_hang_ups:,} |"
    unexpected = ", ".join(f"{count} × {what}" for what, count in results.unexpected.items())
    yield f"| anything else | {unexpected or 'nothing'} |"
    yield f"| refusals without Retry-After | {results.refusals_without_retry_after} |"
    for kind, name in (("anonymous_bytes", "anonymous"), ("pss_bytes", "proportional set size")):
        before, after = results.compared(kind)
        peak = max(getattr(sample, kind) for sample in results.samples)
        yield (
            f"| {name}, MB: at rest after the warm-up, at the end; at most"
            f" | {before / 1e6:.1f}, {after / 1e6:.1f}; {peak / 1e6:.1f} |"
        )
        yield f"| its growth | {results.growth_share(kind):.1%} |"


def chart(results):
    """An SVG of memory over time."""

    def line(name, samples, kind):
        points = ((sample.secs / 60, getattr(sample, kind) / 1e6, "") for sample in samples)
        return lines.Line(name, tuple(points))

    panel = lines.Panel(
        "one function, every second",
        lines.Axis("minutes", is_log=False),
        lines.Axis("MB", is_log=False),
        (
            line("proportional set size", results.samples, "pss_bytes"),
            line("anonymous", results.samples, "anonymous_bytes"),
            line("anonymous, at rest", results.rests, "anonymous_bytes"),
        ),
    )
    heading = "Memory of one function under mixed load"
    explanation = f"{results.num_requests:,} requests, hang-ups, mistakes and refusals among them"
    return lines.draw(heading, explanation, [panel])
