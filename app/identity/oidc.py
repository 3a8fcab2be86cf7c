"""What an OpenID provider says, checked: its description, its keys, and who its tokens mean.

Nothing here touches the database. Answers are limited in size by app.core.outbound, and each is taken only
where it says what the operator's settings say.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from app.core import clock
from app.core.errors import Unauthorized
from app.core.i18n import _
from app.core.outbound import Outbound, OutboundRefused
from app.core.settings import Environment, OidcIssuer, Settings

ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "EdDSA"})
_DESCRIBED_FOR_S = 3600.0
_KEYS_PAUSE_S = 10.0
_MAX_AGE_S = 600
_MAX_TOKEN_CHARS = 16_384
_MIN_RSA_BITS = 2048
_SECOND_FACTORS = frozenset({"mfa", "otp", "hwk", "fpt", "face"})
"""Of RFC 8176: methods that are no password."""


class IssuerRefused(Unauthorized):
    """What came from the issuer does not hold."""

    code, title = "issuer_refused", _("Sign-in through the issuer failed")
    meaning = _("The issuer's answer does not hold: signature, audience, time, nonce or form is not right.")
    remedy = _("Begin the sign-in anew. If it stays, ask the operator to look at the server's log.")


@dataclass(frozen=True, slots=True)
class Described:
    """What we take from an issuer's description."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    names_itself: bool
    """Whether it sends `iss` back with the code (RFC 9207)."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom an ID token means."""

    subject: str
    email: str | None
    """Only where the issuer says that it was verified."""
    second_factor: bool


class Provider:
    """One configured issuer; remembers its description and keys for a while."""

    def __init__(self, issuer: OidcIssuer, outbound: Outbound) -> None:
        self.issuer = issuer
        self._outbound = outbound
        self._lock = threading.Lock()
        self._described: tuple[Described, float] | None = None
        self._keys: tuple[dict[str, jwt.PyJWK], float] = ({}, float("-inf"))

    def described(self) -> Described:
        """The issuer's description (OpenID Connect Discovery); raises OutboundRefused."""
        held = self._described
        if held is not None and time.monotonic() - held[1] < _DESCRIBED_FOR_S:
            return held[0]
        said = self._outbound.get_json(f"{self.issuer.issuer.rstrip('/')}/.well-known/openid-configuration")
        names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        places = [said.get(name) for name in names]
        if said.get("issuer") != self.issuer.issuer or not all(_is_place(one) for one in places):
            raise OutboundRefused(_("another server cannot be asked now"))
        found = Described(
            str(places[0]),
            str(places[1]),
            str(places[2]),
            said.get("authorization_response_iss_parameter_supported") is True,
        )
        self._described = (found, time.monotonic())
        return found

    def address(self, *, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where the browser is sent to sign in."""
        query = {
            "response_type": "code",
            "client_id": self.issuer.client_id,
            "redirect_uri": redirect_uri,
            "scope": "openid email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        place = self.described().authorization_endpoint
        return f"{place}{'&' if '?' in place else '?'}{urlencode(query)}"

    def exchange(self, *, code: str, redirect_uri: str, nonce: str, verifier: str) -> Person:
        """Turn the issuer's code into whom it means; raises IssuerRefused and OutboundRefused."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        secret, login = self.issuer.client_secret, None
        if secret is None:
            form["client_id"] = self.issuer.client_id
        else:
            login = (self.issuer.client_id, secret.get_secret_value())
        answer = self._outbound.post_form(self.described().token_endpoint, form, login=login)
        token = answer.get("id_token")
        if not isinstance(token, str) or len(token) > _MAX_TOKEN_CHARS:
            raise IssuerRefused(_("the issuer's answer does not hold"))
        return self._person(self._claims(token), nonce)

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header.get("kid"))
            if key is None or header.get("alg") not in ALGORITHMS or not _fits(key, header["alg"]):
                raise IssuerRefused(_("the issuer's answer does not hold"))
            return jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                audience=self.issuer.client_id,
                issuer=self.issuer.issuer,
                leeway=60,
                options={"require": ["iss", "sub", "aud", "exp", "iat", "nonce"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
            raise IssuerRefused(_("the issuer's answer does not hold")) from error

    def _person(self, claims: Mapping[str, Any], nonce: str) -> Person:
        subject, issued, audience = claims["sub"], claims["iat"], claims["aud"]
        said_nonce, party = claims["nonce"], claims.get("azp", self.issuer.client_id)
        is_fresh = isinstance(issued, int) and clock.now().timestamp() - issued < _MAX_AGE_S
        is_ours = party == self.issuer.client_id and (isinstance(audience, str) or "azp" in claims)
        is_asked = isinstance(said_nonce, str) and hmac.compare_digest(said_nonce.encode(), nonce.encode())
        if not (isinstance(subject, str) and 0 < len(subject) <= 255 and subject.isprintable()):
            raise IssuerRefused(_("the issuer's answer does not hold"))
        if not (is_fresh and is_ours and is_asked):
            raise IssuerRefused(_("the issuer's answer does not hold"))
        email, methods = claims.get("email"), claims.get("amr")
        is_verified = claims.get("email_verified") is True and isinstance(email, str) and len(email) <= 254
        shown = isinstance(methods, list) and any(
            isinstance(one, str) and one in _SECOND_FACTORS for one in methods
        )
        return Person(
            subject=subject,
            email=email if is_verified else None,
            second_factor=self.issuer.enforces_second_factor or shown,
        )

    def _key(self, kid: object) -> jwt.PyJWK | None:
        """The issuer's key of this id; an unknown id reads them again, at most every ten seconds."""
        if not isinstance(kid, str):
            return None
        with self._lock:
            keys, read_at = self._keys
            if kid not in keys and time.monotonic() - read_at > _KEYS_PAUSE_S:
                keys = _readable(self._outbound.get_json(self.described().jwks_uri))
                self._keys = (keys, time.monotonic())
        return keys.get(kid)


def providers_of(settings: Settings) -> dict[str, Provider]:
    """The configured issuers by name. Only their own hosts may have addresses that are not public."""
    if not settings.oidc:
        return {}
    hosts = frozenset(urlsplit(one.issuer).hostname or "" for one in settings.oidc)
    outbound = Outbound(trusted_hosts=hosts, allow_http=settings.environment is Environment.DEVELOPMENT)
    return {one.name: Provider(one, outbound) for one in settings.oidc}


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a PKCE verifier (RFC 7636)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def fresh_secret() -> str:
    """256 random bits, as a state, a nonce or a verifier."""
    return secrets.token_urlsafe(32)


def _is_place(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 500 and value.startswith(("https://", "http://"))


def _readable(said: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """The keys of a set that we can verify with; others are passed over."""
    keys = said.get("keys")
    found: dict[str, jwt.PyJWK] = {}
    for one in keys[:50] if isinstance(keys, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("kid"), str) or one.get("use", "sig") != "sig":
            continue
        try:
            found[one["kid"]] = jwt.PyJWK.from_dict(one)
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError, KeyError):
            continue
    return found


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    """Whether a key is of the algorithm's kind and long enough: an RSA key never serves as an HMAC secret."""
    kinds = {"RSA": {"RS256", "PS256"}, "EC": {"ES256"}, "OKP": {"EdDSA"}}
    if algorithm not in kinds.get(str(key.key_type), set()):
        return False
    return not isinstance(key.key, RSAPublicKey) or key.key.key_size >= _MIN_RSA_BITS
