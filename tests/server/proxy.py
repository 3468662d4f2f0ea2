"""A TCP proxy of the tests' own, that stalls, falls silent or cuts when it is told to."""

import contextlib
import socket
import threading


class Proxy:
    """Passes bytes on between clients and a server; as a context manager it ends with its block."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._over = False
        self._wires: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        self._passes.set()
        self.cut()
        self._listener.close()

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told: as if the machine beyond were gone."""
        self._passes.clear()

    def cut(self) -> None:
        """Every connection ends at once."""
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()

    def _accept(self) -> None:
        while not self._over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._wires += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pass, args=(source, sink), daemon=True)
                thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                if self._over:
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
