"""Talking to the server: tokens, retries, downloads and the one upload. Sends nothing but what it is given.

Every wait is bounded. An answer that may come out differently later is asked for again with the same
bytes; any other refusal becomes a ClientError with the server's code.
"""

from __future__ import annotations

import email.utils
import importlib.metadata
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Self
from uuid import uuid4

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import ClientError, printable
from client.i18n import _
from client.possession import Holder, sign_update
from client.proxies import unused_variable
from client.trust import Seen, Trust, certificate_fault, issuer_of, pin_of
from client.wire import Problem, TokenAnswer, parse, read_json

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_RETRIED = frozenset({429, 502, 503, 504, 507})
_ASSERTION_LIFETIME_S = 240
_LONGEST_PAUSE_S = 30.0
_LONGEST_ASKED_PAUSE_S = 120.0
_MAX_JSON_BYTES = 16 * 1024**2
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)

Body = Callable[[], Iterator[bytes]]
"""Makes the request's body anew for each attempt, always of the same bytes."""


@dataclass(frozen=True)
class Identity:
    """Who asks: proved by a signature, for each token anew."""

    client_id: str
    key: Ed25519PrivateKey


@dataclass(frozen=True)
class Reply:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self, what: str) -> Any:
        """Parse the body strictly."""
        return read_json(self.content, what=what)


def server_address(text: str, *, allow_http: bool) -> str:
    """Check and tidy a server's address. Without TLS only this machine is allowed, unless said otherwise."""
    try:
        url = httpx2.URL(text.strip().rstrip("/"))
    except (httpx2.InvalidURL, TypeError) as error:
        raise ClientError("bad_server", _("{server} is not an address"), server=text) from error
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.userinfo:
        raise ClientError("bad_server", _("{server} is not an address"), server=text)
    if url.scheme == "http" and not allow_http and not _is_this_machine(url.host):
        raise ClientError(
            "insecure_server",
            _("{server} is not encrypted: use https, or --allow-http inside a trusted network"),
            server=str(url),
        )
    return str(url).rstrip("/")


class ServerRefused(ClientError):
    """The server answered, and said no."""

    status: int = 0


class Session:
    """Requests of one client to one server. Safe to use from several threads."""

    def __init__(
        self,
        server: str,
        *,
        identity: Identity | None = None,
        bearer: str | None = None,
        trust: Trust = Trust(),
        proxy: str | None = None,
        patience_s: float = 300.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.server = server
        self.trust = trust
        self._identity = identity
        self._bearer = bearer
        self._patience_s = patience_s
        self._on_wait = on_wait or (lambda _reason: None)
        self._holder = Holder()
        self._lock = threading.Lock()
        self._token: tuple[str, float] | None = None
        self._seen = Seen(trust.pins)
        self._through_proxy = proxy is not None
        # Pins are of the server; a proxy that speaks TLS itself is known by certificates alone.
        by_tls = proxy is not None and proxy.startswith("https:")
        self._http = httpx2.Client(
            # No proxy, certificate or password from the environment: what is sent where is in the profile.
            trust_env=False,
            verify=trust.context(self._seen),
            proxy=httpx2.Proxy(proxy, ssl_context=trust.context() if by_tls else None) if proxy else None,
            timeout=_TIMEOUT,
            follow_redirects=False,
            headers={"User-Agent": f"dpfl-client/{_version()}", "Accept-Encoding": "identity"},
        )

    @property
    def server_key(self) -> tuple[str, str] | None:
        """Pin and issuer of the certificate that the server showed last; None before, and without TLS."""
        certificate = self._seen.certificate
        return None if certificate is None else (pin_of(certificate), issuer_of(certificate))

    def sign_in(self) -> None:
        """Have a token, asked for now if there is none that holds."""
        self._access()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def get(self, path: str, *, query: Mapping[str, str] | None = None, wait_s: float = 0.0) -> Reply:
        """Read something; `wait_s` is how long the server may hold the answer back."""
        return self._authorized("GET", path, query=query, wait_s=wait_s)

    def post(self, path: str, payload: Any) -> Reply:
        """Send JSON. Repeated only under one Idempotency-Key, so that it counts once."""
        return self._authorized("POST", path, payload=payload, headers={"Idempotency-Key": str(uuid4())})

    def put_bytes(self, path: str, body: Body, *, headers: Mapping[str, str]) -> Reply:
        """Send a body; after any doubt the same bytes are sent again."""
        return self._authorized("PUT", path, body=body, headers=headers)

    def download(self, path: str, *, limit_bytes: int) -> Reply:
        """Read a binary body of at most `limit_bytes`."""
        return self._authorized("GET", path, limit_bytes=limit_bytes)

    def public(
        self, method: str, path: str, *, payload: Any = None, form: Mapping[str, str] | None = None
    ) -> Reply:
        """Ask without a token."""
        return self._patiently(lambda: self._once(method, path, payload=payload, form=form))

    def _authorized(self, method: str, path: str, **request: Any) -> Reply:
        reply = self._patiently(lambda: self._once(method, path, token=self._access(), **request))
        if reply.status == 401 and self._identity is not None:
            self._forget_token()
            reply = self._patiently(lambda: self._once(method, path, token=self._access(), **request))
        return _accepted(reply)

    def _patiently(self, attempt: Callable[[], Reply]) -> Reply:
        """Repeat an attempt while the answer may change, for at most the patience of this session."""
        ends, pause_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                reply = attempt()
            except httpx2.TransportError as error:
                refusal = _unreachable(self.server, error, through_proxy=self._through_proxy)
                asked_s = None
                if isinstance(error, httpx2.UnsupportedProtocol) or refusal.code == "certificate_refused":
                    raise refusal from error
            else:
                if reply.status not in _RETRIED:
                    return reply
                refusal, asked_s = problem_of(reply), _retry_after_s(reply)
            wait_s = asked_s if asked_s is not None else pause_s * (0.5 + secrets.randbelow(1000) / 1000)
            if time.monotonic() + wait_s > ends:
                raise refusal
            self._on_wait(refusal.code)
            time.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _once(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        query: Mapping[str, str] | None = None,
        payload: Any = None,
        form: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
        limit_bytes: int = _MAX_JSON_BYTES,
    ) -> Reply:
        sent = dict(headers or {})
        address = f"{self.server}{path}"
        if self._identity is not None:
            sent |= self._proven(method, address, token)
            if body is not None:
                sign_update(sent, address=address, client_id=self._identity.client_id, key=self._identity.key)
        elif token is not None:
            sent["Authorization"] = f"Bearer {token}"
        with self._http.stream(
            method,
            address,
            params=dict(query) if query else None,
            json=payload,
            data=dict(form) if form else None,
            content=body() if body else None,
            headers=sent,
            timeout=httpx2.Timeout(_TIMEOUT.read or 30.0, connect=_TIMEOUT.connect, read=30.0 + wait_s),
        ) as response:
            content = _read_at_most(response, limit_bytes)
            return Reply(status=response.status_code, headers=response.headers, content=content)

    def _proven(self, method: str, address: str, token: str | None) -> dict[str, str]:
        """A token with the proof that its key is held here; or the proof that binds the next token."""
        proof = {"DPoP": self._holder.proof(method, address, token=token)}
        return proof if token is None else proof | {"Authorization": f"DPoP {token}"}

    def _access(self) -> str | None:
        """Return a token that holds for a while yet, asking for a new one when needed."""
        if self._bearer is not None or self._identity is None:
            return self._bearer
        with self._lock:
            if self._token is None or time.monotonic() > self._token[1]:
                self._token = self._ask_for_token(self._identity)
            return self._token[0]

    def _forget_token(self) -> None:
        with self._lock:
            self._token = None

    def _ask_for_token(self, identity: Identity) -> tuple[str, float]:
        address = f"{self.server}/v1/tokens"
        asked = time.monotonic()

        def ask() -> Reply:  # each attempt signs anew: an assertion is exchanged once
            form = {
                "grant_type": "client_credentials",
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": assertion(identity, audience=address),
            }
            return self._once("POST", "/v1/tokens", form=form)

        reply = _accepted(self._patiently(ask))
        answer = parse(TokenAnswer, reply.json("token"), what="token")
        return answer.access_token, asked + max(answer.expires_in * 0.8, answer.expires_in - 60.0)


def assertion(identity: Identity, *, audience: str) -> str:
    """Sign a request for a token (RFC 7523): short-lived, for one server, never used twice."""
    now = int(time.time())
    claims = {
        "iss": identity.client_id,
        "sub": identity.client_id,
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + _ASSERTION_LIFETIME_S,
        "jti": str(uuid4()),
    }
    return jwt.encode(claims, identity.key, algorithm="EdDSA")


def problem_of(reply: Reply) -> ClientError:
    """Turn a refusal into a ClientError. The server's text is shown without control characters, and cut."""
    try:
        problem = Problem.model_validate(reply.json("refusal"))
    except (ClientError, ValueError):
        problem = Problem()
    if problem.code == "clock_skew" and problem.server_time is not None:
        return ClientError(
            "clock_skew",
            _("this machine's clock says {here}, the server's {there}: set the clock"),
            here=datetime.now(UTC).isoformat(timespec="seconds"),
            there=problem.server_time.isoformat(timespec="seconds"),
        )
    code = problem.code if problem.code.replace("_", "").isalnum() and len(problem.code) <= 64 else "refused"
    text = printable(problem.detail or problem.title)[:300].strip() or f"HTTP {reply.status}"
    refused = ServerRefused(code, _("the server refused: {text}"), text=text)
    refused.status = reply.status
    return refused


def _accepted(reply: Reply) -> Reply:
    if reply.status // 100 == 2 or reply.status == 304:
        return reply
    raise problem_of(reply)


def _read_at_most(response: httpx2.Response, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in response.iter_raw():
        size += len(part)
        if size > limit_bytes:
            raise ClientError("answer_too_large", _("the server's answer is larger than it may be"))
        parts.append(part)
    return b"".join(parts)


def _retry_after_s(reply: Reply) -> float | None:
    stated = reply.headers.get("retry-after", "")
    try:
        seconds = float(stated)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.1, seconds), _LONGEST_ASKED_PAUSE_S)  # in this order "nan" becomes the shortest pause


def _unreachable(server: str, error: httpx2.TransportError, *, through_proxy: bool) -> ClientError:
    fault = certificate_fault(error)
    if fault is not None:
        return ClientError(
            "certificate_refused",
            _(
                "the certificate shown for {server} is refused: {reason}; "
                "`dpfl doctor --client` names its issuer"
            ),
            server=server,
            reason=fault.verify_message,
        )
    variable = None if through_proxy else unused_variable()
    if variable is not None:
        return ClientError(
            "server_unreachable",
            _(
                "{server} does not answer ({reason}). {variable} is set, and nothing is taken from it by "
                "itself: enrol with --use-environment-proxy or --proxy"
            ),
            server=server,
            reason=type(error).__name__,
            variable=variable,
        )
    return ClientError(
        "server_unreachable",
        _("{server} does not answer ({reason})"),
        server=server,
        reason=type(error).__name__,
    )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _version() -> str:
    try:
        return importlib.metadata.version("dp-federated-lora-lab")
    except importlib.metadata.PackageNotFoundError:
        return "0"
