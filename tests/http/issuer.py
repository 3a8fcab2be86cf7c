"""A small OpenID provider over real HTTP: description, keys, the sign-in's redirect, and tokens with PKCE.

It signs with joserfc, another library than the gateway's, and can be told to lie in any one respect.
"""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

CLIENT_ID = "dpfl-gateway"
CLIENT_SECRET = "a client's secret, for tests"
Key = RSAKey | ECKey | OKPKey


def make_key(algorithm: str) -> Key:
    match algorithm:
        case "ES256":
            return ECKey.generate_key("P-256", {"kid": secrets.token_hex(4), "use": "sig"})
        case "EdDSA":
            return OKPKey.generate_key("Ed25519", {"kid": secrets.token_hex(4), "use": "sig"})
        case _:
            return RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"})


@dataclass
class Issuer:
    """The provider, and who is signed in to it."""

    algorithm: str = "RS256"
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "ada-1", "email": "ada@riverside.example", "email_verified": True}
    )
    claims: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims
    """Changes what an ID token says, to lie."""
    header: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    """Answers some paths in another way."""
    forged_with: Any = None
    """Signs with this key instead of the published one."""
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = make_key(self.algorithm)
        self._codes: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def describe(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "authorization_response_iss_parameter_supported": True,
        } | self.description

    def keys(self) -> dict[str, Any]:
        return KeySet([self.key]).as_dict(private=False)

    def authorize(self, query: dict[str, str]) -> str:
        """The person agrees: where the browser goes back to."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.url}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    def token(self, form: dict[str, str], login: str) -> dict[str, Any] | None:
        """The answer to a code, or None where client, code, redirect or verifier is not right."""
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        query = self._codes.pop(form.get("code", ""), None)
        if query is None or login != f"Basic {expected}" or form["redirect_uri"] != query["redirect_uri"]:
            return None
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != query["code_challenge"]:
            return None
        return {"access_token": "x", "token_type": "Bearer", "id_token": self.id_token(query["nonce"])}

    def id_token(self, nonce: str) -> str:
        moment = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT_ID, "iat": moment, "exp": moment + 300, "nonce": nonce}
        header = {"alg": self.algorithm, "kid": self.key.kid} | self.header
        if header["alg"] == "HS256":
            public = self.key.as_pem(private=False)
            return signed_with_public_key(header, self.claims(claims | self.person), public)
        key = self.forged_with or self.key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # of the older name of EdDSA
            return jwt.encode(header, self.claims(claims | self.person), key, algorithms=[header["alg"]])


def signed_with_public_key(header: dict[str, Any], claims: dict[str, Any], public: bytes) -> str:
    """A token whose HMAC secret is the bytes of a public key, by hand: libraries know better."""
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, claims)]
    body = b".".join(parts)
    mac = base64.urlsafe_b64encode(hmac.digest(public, body, "sha256")).rstrip(b"=")
    return (body + b"." + mac).decode()


def _handler_of(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            issuer.asked.append(parts.path)
            if parts.path in issuer.answers:
                issuer.answers[parts.path](self)
            elif parts.path == "/.well-known/openid-configuration":
                self.say(200, issuer.describe())
            elif parts.path == "/jwks":
                self.say(200, issuer.keys())
            elif parts.path == "/authorize":
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                self.send_response(302)
                self.send_header("Location", issuer.authorize(query))
                self.end_headers()
            else:
                self.say(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            issuer.asked.append(self.path)
            if self.path in issuer.answers:
                issuer.answers[self.path](self)
                return
            form = {name: values[0] for name, values in parse_qs(body).items()}
            found = issuer.token(form, self.headers.get("Authorization", ""))
            self.say(200 if found else 400, found or {"error": "invalid_grant"})

        def say(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_parts: object) -> None:
            """Quiet."""

    return Handler
