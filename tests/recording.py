"""A small HTTP server that plays a federation's gateway and records every byte that a client sends it.

It takes whatever comes and keeps it, so that a test can say what left the client: more than a correct
gateway would show, which refuses what is wrong before it looks at it.
"""

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import uuid4


@dataclass
class Heard:
    """One request as it came; a body may have ended early."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Answer:
    """What to say."""

    status: int = 200
    payload: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Heard], Answer | None]
"""Looked at first; None lets the server answer as usual."""


@dataclass
class PlayedRun:
    """One run with one open round at a time."""

    manifest: dict[str, Any]
    adapter: bytes
    run_id: str = field(default_factory=lambda: str(uuid4()))
    round_id: str = field(default_factory=lambda: str(uuid4()))
    number: int = 1
    state: str = "running"
    announced_sha256: str | None = None
    received: set[str] = field(default_factory=set)
    account: dict[str, Any] | None = None
    """The account that receipts show."""
    counted: int | None = None
    """With control variates, the last round whose release holds an update of the client."""

    @property
    def manifest_bytes(self) -> bytes:
        return canonical(self.manifest)

    @property
    def manifest_sha256(self) -> str:
        return self.announced_sha256 or hashlib.sha256(self.manifest_bytes).hexdigest()

    def assignment(self) -> dict[str, Any]:
        return {
            "round_id": self.round_id,
            "run_id": self.run_id,
            "number": self.number,
            "rounds": self.manifest["rounds"],
            "deadline": "2100-01-01T00:00:00Z",
            "manifest_sha256": self.manifest_sha256,
            "adapter_sha256": hashlib.sha256(self.adapter).hexdigest(),
            "counted": self.counted,
        }

    def shown(self) -> dict[str, Any]:
        return {"id": self.run_id, "state": self.state, "version": 1}

    def open_again(self, *, number: int | None = None, adapter: bytes | None = None) -> None:
        """Open another round, for instance with a number that was sent before."""
        self.round_id, self.number = str(uuid4()), number or self.number
        self.adapter = self.adapter if adapter is None else adapter


class RecordingServer:
    """Runs in a thread; `heard` holds all requests, `script` may change an answer."""

    def __init__(self, run: PlayedRun, *, tls: ssl.SSLContext | None = None) -> None:
        self.run = run
        self.heard: list[Heard] = []
        self.script: Script = lambda _heard: None
        self.client_id = str(uuid4())
        self.clock_off_s = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self) -> None:
                heard = Heard(self.command, self.path, self.headers, b"")
                server.heard.append(heard)
                wanted = int(self.headers.get("Content-Length", 0))
                while len(heard.body) < wanted and (part := self._part(wanted - len(heard.body))):
                    heard.body += part
                if len(heard.body) < wanted:
                    self.close_connection = True
                    return
                self._say(server.script(heard) or server.answer(heard))

            def _part(self, most: int) -> bytes:
                try:
                    return self.rfile.read1(min(most, 4096))
                except OSError:  # the client was killed
                    return b""

            def _say(self, answer: Answer) -> None:
                content = answer.content if answer.content is not None else canonical(answer.payload)
                kind = "application/problem+json" if answer.status >= 400 else "application/json"
                try:
                    self.send_response(answer.status)
                    for name, value in ({"Content-Type": kind} | answer.headers).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client was killed
                    self.close_connection = True

            do_GET = do_POST = do_PUT = _take  # noqa: N815  the library's names

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + server.clock_off_s)

            def log_message(self, *_: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def bodies(self) -> list[bytes]:
        """Every body of every upload, whole or broken off."""
        return [heard.body for heard in self.heard if heard.method == "PUT"]

    def answer(self, heard: Heard) -> Answer:
        path = heard.path.partition("?")[0]
        if heard.method == "PUT":
            return self._receive(heard)
        if re.fullmatch(r"/v1/rounds/[0-9a-f-]+/adapter", path):
            return Answer(content=self.run.adapter)
        is_open = self.run.state == "running" and self.run.round_id not in self.run.received
        known = {
            "/v1/tokens": Answer(payload={"access_token": "t", "token_type": "DPoP", "expires_in": 600}),
            "/healthz": Answer(payload={"status": "alive"}),
            "/v1/clients": Answer(201, {"client_id": self.client_id, "region": "eu-west-1"}),
            "/v1/assignments": Answer(payload={"items": [self.run.assignment()] if is_open else []}),
            f"/v1/runs/{self.run.run_id}": Answer(payload=self.run.shown()),
            f"/v1/runs/{self.run.run_id}/manifest": Answer(content=self.run.manifest_bytes),
        }
        return known.get(path) or problem(404, "not_found")

    def _receive(self, heard: Heard) -> Answer:
        _empty, _v1, _rounds, round_id, _updates, update_id = heard.path.split("/")
        self.run.received.add(round_id)
        digest = hashlib.sha256(heard.body)
        stated = base64.b64encode(digest.digest()).decode()
        if heard.headers["Content-Digest"] != f"sha-256=:{stated}:":
            return problem(422, "digest_mismatch")
        return Answer(
            201,
            {
                "update_id": update_id,
                "round_id": round_id,
                "sha256": digest.hexdigest(),
                "size_bytes": len(heard.body),
                "received_at": datetime.now(UTC).isoformat(),
                "account": self.run.account,
            },
        )


def problem(status: int, code: str, *, headers: dict[str, str] | None = None, **members: Any) -> Answer:
    payload = {"code": code, "title": code, "detail": f"{code} told", "status": status, **members}
    return Answer(status, payload, headers=headers or {})


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
