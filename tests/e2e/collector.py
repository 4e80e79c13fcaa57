"""A collector of traces and metrics by OpenTelemetry's own protocol files: OTLP over HTTP and gRPC."""

import contextlib
import gzip
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECS = 30
PROTOBUF = "application/x-protobuf"
# What a collector that cannot take spans now, or ever, says over HTTP and gRPC.
LATER = (503, grpc.StatusCode.UNAVAILABLE)
NEVER = (400, grpc.StatusCode.INVALID_ARGUMENT)
REQUESTS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


@dataclass
class Collector:
    url: str = ""
    # What the next requests are answered, before one is taken.
    refusals: list[tuple[int, grpc.StatusCode]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    # The metrics of each request by their names.
    pushes: list[dict[str, Metric]] = field(default_factory=list)
    resources: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)

    def take(self, request, headers: dict) -> None:
        if isinstance(request, ExportTraceServiceRequest):
            for of_resource in request.resource_spans:
                self.resources.append(attributes(of_resource.resource))
                for of_scope in of_resource.scope_spans:
                    self.spans.extend(of_scope.spans)
        else:
            [of_resource] = request.resource_metrics
            [of_scope] = of_resource.scope_metrics
            self.resources.append(attributes(of_resource.resource))
            self.pushes.append({metric.name: metric for metric in of_scope.metrics})
        self.headers.append({name.lower(): value for name, value in headers.items()})

    def named(self, name: str, count: int = 1) -> list[Span]:
        """`count` spans of this name; waits for them."""
        deadline = time.monotonic() + WAIT_SECS
        while True:
            spans = [span for span in list(self.spans) if span.name == name]
            if len(spans) >= count:
                return spans
            assert time.monotonic() < deadline, f"{len(spans)} of {count} spans named {name}"
            time.sleep(0.02)

    def children(self, parent: Span) -> dict[str, Span]:
        return {
            span.name: span for span in list(self.spans) if span.parent_span_id == parent.span_id
        }


def attributes(of) -> dict:
    values = {}
    for pair in of.attributes:
        values[pair.key] = getattr(pair.value, pair.value.WhichOneof("value"))
    return values


@contextlib.contextmanager
def over_http(port: int = 0):
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.headers["content-type"] == PROTOBUF
            request = REQUESTS[self.path].FromString(body)
            if collector.refusals:
                status, _ = collector.refusals.pop(0)
            else:
                collector.take(request, dict(self.headers))
                status = 200
            self.send_response(status)
            self.send_header("content-type", PROTOBUF)
            # There is nothing to say.
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def over_grpc():
    collector = Collector()

    class Traces(TraceServiceServicer):
        def Export(self, request, context):
            if collector.refusals:
                _, code = collector.refusals.pop(0)
                context.abort(code, "refused")
            collector.take(request, dict(context.invocation_metadata()))
            return ExportTraceServiceResponse()

    class Metrics(MetricsServiceServicer):
        def Export(self, request, context):
            collector.take(request, dict(context.invocation_metadata()))
            return ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Traces(), server)
    add_MetricsServiceServicer_to_server(Metrics(), server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(grace=None).wait()
