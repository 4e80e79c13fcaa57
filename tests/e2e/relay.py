"""A network between two processes that can be cut, as a partition cuts it: nobody is told."""

import contextlib
import socket
import threading


class Relay:
    """Passes what it gets on a free port to another port."""

    def __init__(self, target: int):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._cut = threading.Event()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Swallows, from now on, all that open connections and new ones send."""
        self._cut.set()

    def mend(self) -> None:
        """Lets new connections through; what was open while it was cut stays silent."""
        self._cut = threading.Event()

    def close(self) -> None:
        for each in self._sockets:
            # Wakes the thread that waits for it.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [caller, server]
                for source, sink in ((caller, server), (server, caller)):
                    arguments = (source, sink, self._cut)
                    threading.Thread(target=_pass, args=arguments, daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket, cut: threading.Event) -> None:
    """Passes bytes, and the end, until it is cut."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if not cut.is_set():
                sink.sendall(data)
        if not cut.is_set():
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay_to(port: int):
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()
