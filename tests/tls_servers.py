"""Servers and proxies that speak TLS on real sockets, and keep what they heard under it."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

from tests.certificates import Authority

PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


class _Listening:
    """Accepts connections on a port of its own, each in a thread, until the block ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:  # closed
                return
            connection.settimeout(10)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class Ear(_Listening):
    """Does the handshake and then only listens: `heard` is every byte that came under TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context
        self.url = f"https://127.0.0.1:{self.port}"
        self.heard = b""
        self.handshakes = 0

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                tls = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                return
            with tls:
                self.handshakes += 1
                try:
                    while part := tls.recv(1 << 16):
                        self.heard += part
                except OSError:  # the other side went away without a word
                    return


class Proxy(_Listening):
    """A CONNECT proxy. With `inspects`, it opens TLS with certificates of that authority, as offices do."""

    def __init__(
        self,
        *,
        inspects: Authority | None = None,
        account: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__()
        self._inspects, self._account, self._tls = inspects, account, tls
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.asked: list[str] = []
        """First line of every request that it got."""
        self.read = b""
        """What it could read of that which went through, by inspecting."""

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(4096)):
                head += part
            if not head:  # somebody only looked whether we are here
                return
            line = head.partition(b"\r\n")[0].decode()
            self.asked.append(line)
            method, target, _version = line.split(" ")
            if method != "CONNECT":
                connection.sendall(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
            elif self._account and base64.b64encode(self._account.encode()) not in head:
                connection.sendall(b"HTTP/1.1 407 Who Are You\r\nContent-Length: 0\r\n\r\n")
            else:
                self._tunnel(connection, *target.rsplit(":", 1))

    def _tunnel(self, connection: socket.socket, host: str, port: str) -> None:
        try:
            server = socket.create_connection((host, int(port)), timeout=10)
        except OSError:
            connection.sendall(b"HTTP/1.1 502 Not There\r\nContent-Length: 0\r\n\r\n")
            return
        connection.sendall(b"HTTP/1.1 200 Go On\r\n\r\n")
        with server:
            if self._inspects is None:
                self._both_ways(connection, server)
                return
            try:
                here = self._inspects.issue(host).server_context().wrap_socket(connection, server_side=True)
            except OSError:  # the client did not take our certificate
                return
            blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
            with here, blind.wrap_socket(server) as there:
                self._both_ways(here, there)

    def _both_ways(self, here: socket.socket, there: socket.socket) -> None:
        self._start(self._pass, there, here)
        self._pass(here, there)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while part := source.recv(1 << 16):
                if isinstance(source, ssl.SSLSocket):
                    self.read += part
                target.sendall(part)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:  # either side went away
            return
