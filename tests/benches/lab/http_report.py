"""The table and the chart of `tests/bench http`."""

import datetime
import platform
import statistics
from importlib.metadata import version

from . import lines, wrk
from .cold_report import SHOWN_OF_SERVICE
from .engines import PEERS
from .report import machine, revision
from .results import three_digits
from .servers import FASTAPI, FASTAPI_ORT, OURS, OURS_F32

SHOWN_OF_ORT = ("onnxruntime", "fastapi", "uvicorn", "pydantic", "tokenizers", "numpy")
TITLES = {
    "closed": "DistilBERT, lengths of SST-2, closed loop",
    "long": "DistilBERT, 8 to 512 tokens, closed loop",
    "open": "DistilBERT, lengths of SST-2, open loop",
    "sweep": "DistilBERT, lengths of SST-2, by the size of batches, 16 callers",
    "bundled": "The bundled model, lengths of SST-2, closed loop",
}
EXPLANATIONS = {
    "open": (
        "At half of what the slowest answers to 16 callers, and at 0.7 of what ours does; those"
        " that answer fewer are left out. Latency counts from when a request is due."
    ),
    "sweep": (
        "Ours: MAX_BATCH_REQUESTS. The service: MAX_BATCH_SIZE, with 50 ms of waiting but at 1,"
        " where it makes no batches. All these run at once and share pages, so each seems smaller"
        " than it is alone."
    ),
}


def table(results, plan):
    """Everything a reader needs to judge the figures, then the figures."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    title = "# HTTP against its peers"
    lines_ = [title if plan.is_whole else f"{title} (a restricted run)", ""]
    lines_ += [f"- {date}, sanderling {revision()}, written by `tests/bench http`"]
    lines_ += [machine(), *(f"- {each}" for each in _versions())]
    lines_ += [f"- {_method()}", f"- {_disturbance(results)}"]
    lines_ += [f"- {each}" for each in results.settings]
    for part, title in TITLES.items():
        if any(place.part == part for place in results.cells):
            lines_ += ["", *_section(results, part, title)]
    if results.noop:
        lines_ += ["", *_noop(results.noop)]
    if results.overload:
        lines_ += ["", *_overload(results.overload)]
    return "\n".join(lines_) + "\n"


def _versions():
    pins = (PEERS / "fastapi" / "requirements.txt").read_text(encoding="ascii").splitlines()
    pinned = dict(pin.split("==") for pin in pins if "==" in pin)
    service = ", ".join(f"{name} {pinned[name]}" for name in SHOWN_OF_SERVICE)
    ort = ", ".join(f"{name} {version(name)}" for name in SHOWN_OF_ORT)
    yield f"Python {platform.python_version()}. {FASTAPI}: {service}. {FASTAPI_ORT}: {ort}"
    yield f"The path without a model is driven by {wrk.version()}, all else by our load generator"


def _method():
    return (
        "Servers and the load generator share the CPUs; one server at a time has anything to do."
        " Ours has its defaults and logs a line for each request to a file, the peers log nothing."
        " Figures are medians of runs; P50 and P99 of right answers, in ms; CPUs: how many of them"
        " the server and the generator kept busy; peak: largest proportional set size of all"
        " processes of the server, in MB of 10⁶ bytes, of a sample a second"
    )


def _disturbance(results):
    seen = results.other_cpus()
    if not seen:
        return "CPUs that others used meanwhile: unknown"
    return (
        f"CPUs that others used meanwhile: median of runs {statistics.median(seen):.2f},"
        f" 90th percentile {seen[int(0.9 * (len(seen) - 1))]:.2f}"
    )


def _section(results, part, title):
    yield f"## {title}"
    yield ""
    if part in EXPLANATIONS:
        yield EXPLANATIONS[part]
        yield ""
    yield (
        "| load | contestant | answers/s | ours × | P50 | P99 | refused | failed"
        " | CPUs, server | CPUs, generator | peak MB | runs |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    shown = None
    # By load: rounds came one after the other.
    places = [place for place in results.cells if place.part == part]
    for load in dict.fromkeys(place.load for place in places):
        for place in (each for each in places if each.load == load):
            columns = _columns(results, place)
            yield f"| {load if load != shown else ''} | {' | '.join(columns)} |"
            shown = load


def _columns(results, place):
    cell = results.cells[place]
    ratio = results.rps_ratio(place.part, place.load, OURS, place.name)
    columns = [
        place.name,
        three_digits(cell.rps),
        "–" if ratio is None else f"{ratio:.2f}",
        _ms(cell.latency_ms("p50")),
        _ms(cell.latency_ms("p99")),
        str(cell.num_refused),
        str(cell.num_failed),
        f"{cell.server_cpus:.2f}",
        f"{cell.load_cpus:.2f}",
        f"{cell.peak_bytes / 1e6:.0f}",
        str(len(cell.runs)),
    ]
    if place.name in (OURS, OURS_F32):
        columns[:2] = [f"**{column}**" for column in columns[:2]]
    return columns


def _ms(number):
    return "–" if number is None else three_digits(number)


def _noop(noop):
    yield "## Without a model"
    yield ""
    yield (
        "What is left of a request where an engine answers zeros at once: the edge, JSON, the"
        " tokenizer of the bundled model, the queue. Texts as long as those of SST-2."
        f" {wrk.CONNECTIONS} connections, one thread of wrk."
    )
    yield ""
    yield "| log | answers/s | P50 | P99 | failed | CPU µs, server | CPU µs, wrk | runs |"
    yield "|---|---|---|---|---|---|---|---|"
    for log, runs in noop.items():

        def median(name, runs=runs):
            return three_digits(statistics.median(getattr(seen, name) for seen in runs))

        figures = [median(name) for name in ("rps", "p50_ms", "p99_ms")]
        figures += [str(sum(seen.num_failed for seen in runs))]
        figures += [median(name) for name in ("server_us", "wrk_us")]
        yield f"| {log} | {' | '.join(figures)} | {len(runs)} |"


def num_bad_answers(overload):
    """Answers that were neither right nor a refusal that says when to come back."""
    without = overload.seen.report["refusals_without_retry_after"]
    return overload.seen.num_failed + without


def _overload(overload):
    report = overload.seen.report
    health, late = overload.health["ok_ms"], report["late_ms"]
    yield "## Overload"
    yield ""
    yield (
        f"DistilBERT, lengths of SST-2: {overload.rate:.0f} requests a second for"
        f" {report['secs']:.0f} s, {overload.rate / overload.peak_rps:.1f} times what 64 callers"
        " got just before; latency counts from when a request is due."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| most answers/s before | {three_digits(overload.peak_rps)} |"
    yield f"| answers/s | {three_digits(overload.seen.rps)} ({overload.goodput_share:.1%}) |"
    yield f"| their P50, P99 | {_both(report['ok_ms'])} |"
    statuses = ", ".join(f"{count} × {status}" for status, count in report["answers"].items())
    yield f"| answers | {statuses} |"
    yield f"| neither answered nor refused | {overload.seen.num_failed} |"
    yield f"| refusals without Retry-After | {report['refusals_without_retry_after']} |"
    yield f"| refusals, P50, P99 | {_both(overload.refused_ms)} |"
    yield f"| sent late by, P50, P99 | {_both(late)} |"
    yield f"| `/health` meanwhile, P50, P99 | {_both(health)} |"
    failures = sum(overload.health["errors"].values())
    yield f"| its answers | {overload.health['answers']}, {failures} errors |"
    seen = overload.seen
    memory = {
        "before": overload.before_bytes,
        "after its first second": seen.first_bytes,
        "at most": seen.peak_bytes,
        "at its end": seen.last_bytes,
        "at rest": overload.rest_bytes,
    }
    megabytes = ", ".join(f"{each / 1e6:.1f}" for each in memory.values())
    yield f"| MB {', '.join(memory)} | {megabytes} |"
    cpus = (seen.server_cpus, seen.load_cpus, seen.other_cpus)
    yield f"| CPUs, server, generator, others | {', '.join(f'{each:.2f}' for each in cpus)} |"


def _both(times):
    return f"{three_digits(times['p50'])}, {three_digits(times['p99'])} ms" if times else "–"


def chart(results):
    """An SVG of throughput against latency, a point for each number of callers."""
    x = lines.Axis("right answers a second", is_log=True)

    def panel(which, title):
        drawn = []
        for name in (OURS, FASTAPI, FASTAPI_ORT, OURS_F32):
            cells = {
                p.load: c for p, c in results.cells.items() if (p.part, p.name) == ("closed", name)
            }
            points = [
                (cell.rps, cell.latency_ms(which), load.split()[0])
                for load, cell in cells.items()
                if cell.latency_ms(which)
            ]
            drawn.append(lines.Line(name, tuple(points)))
        return lines.Panel(title, x, lines.Axis(f"{title}, ms", is_log=True), tuple(drawn))

    heading = "DistilBERT over HTTP, lengths of SST-2: throughput against latency"
    explanation = "a point for each number of callers, which it names; both axes are logarithmic"
    return lines.draw(heading, explanation, [panel("p50", "P50"), panel("p99", "P99")])
