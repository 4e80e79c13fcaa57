"""What it costs to speak another dialect: the same texts, asked in each, over one connection.

    tests/bench dialects [--quick]

Dialects take turns, request by request, so that whatever disturbs the machine disturbs them all.
`predict` has an engine that answers zeros at once: what differs is reading and writing. `embed` is the
function with its own model, asked for 32 texts.
"""

import argparse
import json
import random
import socket
import statistics
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .lab import contestants, engines, report, texts
from .lab.serving import serving

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

NATIVE, TEI, OPENAI = "Sanderling", "text-embeddings-inference", "OpenAI, base64"
ROUNDS, QUICK_ROUNDS = (20_000, 1_000), (2_000, 100)
WARM_UP_SHARE = 0.1
NUM_TEXTS = 32


@dataclass(frozen=True)
class Ask:
    """One way to ask the same thing."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def request(self):
        headers = {"content-type": "application/json"} | self.headers
        head = f"POST {self.path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(self.body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode() + b"\r\n" + self.body


def main():
    rounds, is_whole = read_arguments()
    if missing := [*engines.build_noop(), *contestants.build_embed()]:
        sys.exit("\n".join(missing))
    text = texts.sst2()[0]
    model = REPOSITORY / "functions" / "predict" / "model"
    with serving(engines.NOOP, MODEL_URI=str(model)) as server:
        predicted = measure(server.port, predict_asks(text), rounds[0])
    model = REPOSITORY / "functions" / "embed" / "model"
    with serving(contestants.EMBED, MODEL_URI=str(model)) as server:
        embedded = measure(server.port, embed_asks(texts.sst2()[:NUM_TEXTS]), rounds[1])
    table = table_of(text, predicted, embedded, rounds)
    print(table)
    if is_whole:
        (HERE / "dialects.md").write_text(table, encoding="utf-8")
    print(json.dumps(summarize(predicted, embedded, is_whole)))


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench dialects")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    is_quick = parser.parse_args().quick
    return (QUICK_ROUNDS if is_quick else ROUNDS), not is_quick


def predict_asks(text):
    def of(name, path, body, **headers):
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        return Ask(
            name, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers
        )

    raw = struct.pack("<I", len(text.encode())) + text.encode()
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES"}
    sized = tensor | {"parameters": {"binary_data_size": len(raw)}}
    head = {"inputs": [sized], "parameters": {"binary_data_output": True}}
    head = json.dumps(head).encode()
    event = {"specversion": "1.0", "id": "1", "source": "/bench", "type": "bench"}
    attributes = {f"ce_{name}": value for name, value in event.items()}
    infer = "/v2/models/predict/infer"
    length = {"inference_header_content_length": str(len(head))}
    return [
        of(NATIVE, "/predict", {"text": text, "top_k": 2}),
        of(TEI, "/predict", {"inputs": text}),
        of("Hugging Face", "/", {"inputs": text, "parameters": {}}),
        of("vLLM", "/v1/classify", {"model": "predict", "input": text}),
        of("KServe v1", "/v1/models/predict:predict", {"instances": [text]}),
        of("Open Inference Protocol v2", infer, {"inputs": [tensor | {"data": [text]}]}),
        of("Open Inference Protocol v2, binary", infer, head + raw, **length),
        of("CloudEvents, binary", "/", {"text": text, "top_k": 2}, **attributes),
        of(
            "CloudEvents, structured",
            "/",
            event | {"data": {"text": text, "top_k": 2}},
            content_type="application/cloudevents+json",
        ),
        of("SageMaker", "/invocations", {"inputs": text}),
    ]


def embed_asks(chosen):
    base64 = {"model": "embed", "input": chosen, "encoding_format": "base64"}
    return [
        Ask(TEI, "/embed", json.dumps({"inputs": chosen}).encode()),
        Ask(OPENAI, "/v1/embeddings", json.dumps(base64).encode()),
    ]


def measure(port, asks, num_rounds):
    """Median microseconds from the first byte sent to the last one read, by the name of an ask."""
    requests = [(ask.name, ask.request()) for ask in asks]
    times = {ask.name: [] for ask in asks}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(num_rounds):
            random.shuffle(requests)
            for name, request in requests:
                before = time.perf_counter_ns()
                connection.sendall(request)
                status = read_answer(connection)
                times[name].append((time.perf_counter_ns() - before) / 1e3)
                if status != b"200":
                    sys.exit(f"{name}: {status.decode()}")
    return {
        name: statistics.median(seen[int(WARM_UP_SHARE * num_rounds) :])
        for name, seen in times.items()
    }


def read_answer(connection):
    """Reads one answer to its end; gives its status."""
    data = connection.recv(1 << 20)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(1 << 20)
    _, _, length = data[:end].partition(b"\r\ncontent-length: ")
    missing = end + 4 + int(length.partition(b"\r\n")[0]) - len(data)
    while missing > 0:
        missing -= len(connection.recv(1 << 20))
    return data[9:12]


def table_of(text, predicted, embedded, rounds):
    native, tei = predicted[NATIVE], embedded[TEI]
    lines = [
        "# What a dialect costs",
        "",
        f"- sanderling {report.revision()}, written by `tests/bench dialects`",
        report.machine(),
        _method(text, rounds),
        "",
        "| `predict` | µs | more than ours, µs |",
        "|---|---|---|",
        *(f"| {name} | {us:.1f} | {us - native:+.1f} |" for name, us in predicted.items()),
        "",
        f"| `embed`, {NUM_TEXTS} texts | µs | of text-embeddings-inference's |",
        "|---|---|---|",
        *(f"| {name} | {us:.0f} | {us / tei:.3f} |" for name, us in embedded.items()),
    ]
    return "\n".join(lines) + "\n"


def _method(text, rounds):
    return (
        "- Medians over one connection, one request at a time, dialects in turns:"
        f" {rounds[0]:,} of each to `predict` with an engine that answers at once, for one text of"
        f" {len(text)} characters; {rounds[1]:,} to `embed` with its own model, for {NUM_TEXTS}"
        " texts. The client's time is in all of them."
    )


def summarize(predicted, embedded, is_whole):
    """The line of JSON."""
    extra = {name: round(us - predicted[NATIVE], 2) for name, us in predicted.items()}
    return {
        "bench": "dialects",
        "whole": is_whole,
        "extra_us": extra,
        "most_extra_us": max(extra.values()),
        "openai_base64_of_tei": round(embedded[OPENAI] / embedded[TEI], 4),
    }


if __name__ == "__main__":
    main()
