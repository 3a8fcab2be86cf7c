"""Servers and proxies that speak TLS on real sockets, and keep what they heard under it."""

from __future__ import annotations

import base64
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

from tests.certificates import Authority

PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


class _Listening:
    """Accepts connections on a port of its own, each in a thread, until the block ends."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._listener = socket.create_server((host, port))
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

    def _both_ways(self, here: socket.socket, there: socket.socket) -> None:
        """Pass on what comes from either side, in one thread: TLS is not to be read and written by two."""
        other = {here: there, there: here}
        try:
            while True:
                held = [one for one in other if isinstance(one, ssl.SSLSocket) and one.pending()]
                for source in held or select.select(list(other), [], [], 10)[0]:
                    part = _ready(source)
                    if part == b"":
                        return
                    if part is not None:
                        self._passed(source, part)
                        other[source].sendall(part)
        except OSError:  # either side went away
            return

    def _passed(self, source: socket.socket, part: bytes) -> None:
        """See what goes through."""


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

    def _passed(self, source: socket.socket, part: bytes) -> None:
        if self._inspects is not None:
            self.read += part

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


class Front(_Listening):
    """Speaks TLS for a server on this machine that does not, as a load balancer would."""

    def __init__(self, context: ssl.SSLContext, target_port: int, *, host: str, port: int = 0) -> None:
        super().__init__(host, port)
        self._context, self._target_port = context, target_port
        self.url = f"https://{host}:{self.port}"

    def _serve(self, connection: socket.socket) -> None:
        try:
            here = self._context.wrap_socket(connection, server_side=True)
        except OSError:  # it was only looked whether we are here, or our certificate was not taken
            connection.close()
            return
        with here, socket.create_connection(("127.0.0.1", self._target_port)) as there:
            self._both_ways(here, there)


def _ready(source: socket.socket) -> bytes | None:
    """What has come; None where that was TLS's own business, empty at the end."""
    source.settimeout(0)
    try:
        return source.recv(1 << 16)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    finally:
        source.settimeout(10)
