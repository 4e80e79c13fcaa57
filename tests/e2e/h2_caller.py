"""One h2 connection, frame by frame: what well-behaved clients do not send, and do not show."""

import contextlib
import socket

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class H2Caller:
    """Answers settings and pings, and counts no windows: what it sends and gets is short."""

    def __init__(self, port: int, settings: dict[int, int] | None = None, timeout: float = 60):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.next_stream = 1
        self.socket.sendall(PREFACE + SettingsFrame(settings=settings or {}).serialize())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def head(self, method="POST", path="/predict", **headers: str) -> HeadersFrame:
        """The frame of a new request; `content_type` is the header `content-type`."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "a")]
        block = self.encoder.encode(pseudo + named)
        frame = HeadersFrame(self.next_stream, data=block, flags=["END_HEADERS"])
        self.next_stream += 2
        return frame

    def get(self, path: str, **headers: str) -> int:
        """Sends a request without a body; gives its stream."""
        head = self.head("GET", path, **headers)
        head.flags.add("END_STREAM")
        self.send(head)
        return head.stream_id

    def post(self, body: bytes, end: bool = True) -> int:
        """Sends a JSON body, or only its beginning; gives its stream."""
        head = self.head(content_type="application/json")
        self.send(head)
        self.send_body(head.stream_id, body, end)
        return head.stream_id

    def send_body(self, stream: int, body: bytes, end: bool = True) -> None:
        self.send(DataFrame(stream, data=body, flags=["END_STREAM"] if end else []))

    def _take(self, num_bytes: int) -> memoryview:
        taken = b""
        while len(taken) < num_bytes:
            chunk = self.socket.recv(num_bytes - len(taken))
            if not chunk:
                raise EOFError
            taken += chunk
        return memoryview(taken)

    def frames(self):
        """What comes, until the other side closes."""
        with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
            while True:
                frame, length = Frame.parse_frame_header(self._take(9))
                frame.parse_body(self._take(length))
                if isinstance(frame, SettingsFrame | PingFrame) and "ACK" not in frame.flags:
                    data = {"opaque_data": frame.opaque_data} if frame.type == 6 else {}
                    self.send(type(frame)(flags=["ACK"], **data))
                yield frame

    def answer(self, stream: int) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; what other streams get is skipped."""
        headers, body = {}, b""
        for frame in self.frames():
            # Every block changes what the next ones mean.
            block = self.decoder.decode(frame.data) if isinstance(frame, HeadersFrame) else []
            if frame.stream_id != stream:
                continue
            headers |= dict(block)
            if isinstance(frame, DataFrame):
                body += frame.data
            if "END_STREAM" in frame.flags:
                return int(headers[":status"]), headers, body
            assert frame.type != 3, f"stream reset with code {frame.error_code}"
        raise AssertionError(f"closed before the answer; {headers} {body!r}")
