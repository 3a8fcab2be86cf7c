"""A TCP relay that keeps what goes through it: what a client really sends, below every library."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self


class Relay:
    """Listens on a port of its own and passes everything on to another one."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sent = bytearray()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def sent(self) -> bytes:
        """Every byte that came from clients, in the order of arrival."""
        with self._lock:
            return bytes(self._sent)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                _shut(one)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # nobody there yet
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            self._start(self._pass_on, client, server)
            self._start(self._pass_back, server, client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        for part in _parts(client):
            with self._lock:
                self._sent += part
            server.sendall(part)
        _shut(server)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        for part in _parts(server):
            client.sendall(part)
        _shut(client)
        client.close()
        server.close()


def _parts(source: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            part = source.recv(1 << 16)
        except OSError:
            return
        if not part:
            return
        yield part


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:  # gone already
        return
