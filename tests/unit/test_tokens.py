"""Access tokens: everything but the one good form is refused, and never with another exception."""

import base64
import json
from datetime import timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from app.core import clock
from app.core.tokens import (
    ACCESS_TOKEN,
    Expected,
    Refusal,
    TokenRefused,
    public_jwk,
    raw_public,
    read_header,
    read_unverified_subject,
    sign_token,
    verify_token,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
EXPECTED = Expected(
    typ=ACCESS_TOKEN, issuer="https://a", audience="https://a", max_lifetime_s=3600, leeway_s=30
)


def good(**changes: object) -> str:
    issued = int(clock.now().timestamp())
    claims: dict[str, object] = {"iss": "https://a", "aud": "https://a", "sub": "me", "jti": "1"}
    claims |= {"iat": issued, "nbf": issued, "exp": issued + 600} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return signed({"typ": ACCESS_TOKEN, "kid": "k", "alg": "EdDSA"}, claims)


def signed(header: dict[str, object], claims: object) -> str:
    """Sign by hand: the library would refuse to make some of these."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    body = part(header) + b"." + part(claims)
    return (body + b"." + base64.urlsafe_b64encode(KEY.sign(body)).rstrip(b"=")).decode()


def refusal(token: str) -> Refusal:
    with pytest.raises(TokenRefused) as caught:
        verify_token(token, PUBLIC, EXPECTED)
    return caught.value.reason


def test_what_was_signed_is_read_back() -> None:
    token = sign_token(
        KEY,
        kid="k",
        issuer="https://a",
        audience="https://a",
        subject="me",
        lifetime_s=60,
        claims={"org": "o"},
    )
    claims = verify_token(token, PUBLIC, EXPECTED)
    assert (claims["sub"], claims["org"], claims["exp"] - claims["iat"]) == ("me", "o", 60)
    assert read_header(token)["kid"] == "k"


@pytest.mark.parametrize("missing", ["exp", "nbf", "iat", "aud", "iss", "sub", "jti"])
def test_a_token_without_a_required_claim_is_refused(missing: str) -> None:
    assert refusal(good(**{missing: None})) in {Refusal.CLAIMS, Refusal.MALFORMED}


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://b"},
        {"iss": ["https://a"]},
        {"aud": "https://b"},
        {"aud": ["https://a", "https://b"]},
        {"sub": 7},
        {"jti": 7},
        {"jti": "x" * 300},
        {"exp": 10**18},
        {"exp": "99999999999"},
        {"exp": 1e999},
        {"exp": True},
        {"nbf": "soon"},
        {"iat": 0},
    ],
    ids=str,
)
def test_claims_of_the_wrong_value_or_type_are_refused(change: dict[str, object]) -> None:
    assert refusal(good(**change)) in {Refusal.CLAIMS, Refusal.MALFORMED}


@pytest.mark.parametrize("algorithm", ["none", "NoNe", "HS256", "RS256", "ES256"])
def test_no_other_algorithm_is_taken(algorithm: str) -> None:
    claims = jwt.decode(good(), options={"verify_signature": False})
    assert refusal(signed({"typ": ACCESS_TOKEN, "alg": algorithm}, claims)) is Refusal.MALFORMED


def test_the_public_key_does_not_serve_as_an_hmac_secret() -> None:
    claims = jwt.decode(good(), options={"verify_signature": False})
    secret = PUBLIC.public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert refusal(jwt.encode(claims, secret, "HS256", headers={"typ": ACCESS_TOKEN})) is Refusal.MALFORMED


def test_a_token_of_another_type_is_refused() -> None:
    claims = jwt.decode(good(), options={"verify_signature": False})
    assert refusal(signed({"typ": "JWT", "alg": "EdDSA"}, claims)) is Refusal.MALFORMED


def test_another_keys_signature_is_refused() -> None:
    other = sign_token(
        Ed25519PrivateKey.generate(),
        kid="k",
        issuer="https://a",
        audience="https://a",
        subject="me",
        lifetime_s=60,
        claims={},
    )
    assert refusal(other) is Refusal.SIGNATURE


def test_times_hold_within_the_leeway_and_not_beyond() -> None:
    token = good()
    with clock.shifted(timedelta(seconds=620)):
        assert verify_token(token, PUBLIC, EXPECTED)["sub"] == "me"
    with clock.shifted(timedelta(seconds=631)):
        assert refusal(token) is Refusal.EXPIRED
    with clock.shifted(timedelta(seconds=-40)):
        assert refusal(token) is Refusal.EARLY


def test_deep_nesting_is_refused_quietly() -> None:
    body = base64.urlsafe_b64encode(b"[" * 2900).decode()
    header = base64.urlsafe_b64encode(json.dumps({"alg": "EdDSA", "typ": ACCESS_TOKEN}).encode()).decode()
    token = f"{header.rstrip('=')}.{body.rstrip('=')}."
    assert refusal(token) is Refusal.MALFORMED or refusal(token) is Refusal.SIGNATURE
    with pytest.raises(TokenRefused):
        read_unverified_subject(token)


@given(
    st.one_of(
        st.text(max_size=200), st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,9}")
    )
)
def test_any_text_is_either_a_token_or_refused(text: str) -> None:
    for read in (read_header, read_unverified_subject, lambda token: verify_token(token, PUBLIC, EXPECTED)):
        with pytest.raises(TokenRefused):
            read(text)


@pytest.mark.parametrize("text", ["\ud800.a.b", "a.\udfff.b", "é.é.é", "\x00.\x00.\x00", "." * 4000])
def test_text_at_which_the_library_raises_another_error_is_refused(text: str) -> None:
    """A lone surrogate cannot be encoded: the library lets Python's own error through."""
    for read in (read_header, read_unverified_subject, lambda token: verify_token(token, PUBLIC, EXPECTED)):
        with pytest.raises(TokenRefused):
            read(text)


def test_the_json_web_key_is_the_public_half_only() -> None:
    jwk = public_jwk("k", raw_public(KEY))
    assert jwk.keys() == {"kty", "crv", "alg", "use", "kid", "x"}
    assert base64.urlsafe_b64decode(jwk["x"] + "=") == PUBLIC.public_bytes(Encoding.Raw, PublicFormat.Raw)
