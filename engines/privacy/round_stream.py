"""The noise stream of a round that the server noises: a function of its secret, its parameters, its inputs.

A worker that dies and starts again must draw the same noise for the same round, and never the same noise
for anything else: the difference of two releases with one noise is free of noise. So the stream's key binds
everything that the noised sum depends on. The secret is drawn by whoever seals the round, kept where
backups do not reach, and destroyed after publication; nothing here stores it.
"""

import dataclasses
import hashlib
import hmac
import math
import os
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engines.privacy.noise import NoiseStream

Parameter = str | int | float | Sequence["Parameter"]
"""What a parameter's value may be: text, numbers, and sequences of them."""

REQUIRED_PARAMETERS = frozenset(
    {"mechanism", "sampler", "noise_multiplier", "clip_norm", "grid", "dimension", "tensors"}
)
SECRET_BYTES = 32
_LABEL = b"round-stream/1"
_COMMITMENT_LABEL = b"sealed-digest-commitment/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SealedInput:
    """One contribution of a sealed set."""

    contribution: str
    """Its identifier, one of a kind in the round."""
    digest: bytes
    """SHA-256 of its bytes. Never leaves the operator's store as it is: see `commit_to`."""
    weight: float = 1.0
    """Its public weight in the sum."""

    def __post_init__(self) -> None:
        if not self.contribution or len(self.digest) != 32:
            raise ValueError("a sealed input has an identifier and a digest of 32 bytes")
        if not (math.isfinite(self.weight) and self.weight >= 0.0):
            raise ValueError("a sealed input's weight must be finite and at least 0")


def fresh_secret() -> bytes:
    """Draw a round's secret, or a commitment's salt: 32 bytes of the operating system."""
    return os.urandom(SECRET_BYTES)


def round_stream(
    secret: bytes, *, parameters: Mapping[str, Parameter], sealed: Sequence[SealedInput]
) -> NoiseStream:
    """Open the one noise stream of a sealed round.

    Key = HKDF-SHA256(secret, info = SHA256(parameters) || SHA256(sealed inputs)), both written in one
    injective form: parameters by name, inputs by identifier, numbers by their bits. The order in which
    either is given changes nothing; any other difference gives an unrelated stream.

    Args:
        secret: the round's 32 secret bytes, drawn for this round alone.
        parameters: everything public that the noised sum depends on; at least `REQUIRED_PARAMETERS`.
        sealed: the sealed set, in any order; may be empty.
    Raises:
        ValueError: the secret has another length, a required parameter is missing, a value has no
            canonical form (not text, finite number or sequence), or an identifier comes twice.
    Source: HKDF, Krawczyk and Eronen 2010, RFC 5869.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a round's secret has {SECRET_BYTES} bytes, not {len(secret)}")
    missing = sorted(REQUIRED_PARAMETERS - set(parameters))
    if missing:
        raise ValueError(f"{missing[0]}: a round's stream must be bound to it")
    if len({one.contribution for one in sealed}) != len(sealed):
        raise ValueError("a sealed set holds each contribution once")
    named = _framed(
        b"P", [_canonical(part) for name in sorted(parameters) for part in (name, parameters[name])]
    )
    inputs = _framed(
        b"S",
        [
            _canonical([one.contribution, one.digest.hex(), float(one.weight)])
            for one in sorted(sealed, key=lambda one: one.contribution)
        ],
    )
    info = hashlib.sha256(_LABEL + named).digest() + hashlib.sha256(_LABEL + inputs).digest()
    return NoiseStream.from_key(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret))


def commit_to(digest: bytes, *, salt: bytes) -> bytes:
    """Commit to a digest of what has no noise, so that it may be shown: HMAC-SHA256 under a secret salt.

    A bare digest of an un-noised update lets anybody who guesses the update confirm the guess. The
    commitment hides it while the salt is secret, and binds: no other digest can be shown for it later.

    Args:
        digest: 32 bytes.
        salt: 32 fresh secret bytes, used for this digest alone.
    Returns:
        32 bytes.
    Raises:
        ValueError: either has another length.
    """
    if len(digest) != 32 or len(salt) != SECRET_BYTES:
        raise ValueError("a commitment takes a digest and a salt of 32 bytes each")
    return hmac.new(salt, _COMMITMENT_LABEL + digest, hashlib.sha256).digest()


def opens(commitment: bytes, *, digest: bytes, salt: bytes) -> bool:
    """Say whether a commitment was made to this digest with this salt, in constant time."""
    return hmac.compare_digest(commitment, commit_to(digest, salt=salt))


def _canonical(value: Parameter) -> bytes:
    """Write a value so that no two different values, kinds included, are written alike."""
    match value:
        case bool():
            raise ValueError("a truth value has no canonical form here: use a number or a word")
        case str():
            return _framed(b"t", [value.encode()])
        case int():
            return _framed(b"i", [str(value).encode()])
        case float():
            if not math.isfinite(value):
                raise ValueError("a parameter must be a finite number")
            return _framed(b"f", [value.hex().encode()])
        case list() | tuple():
            return _framed(b"l", [_canonical(item) for item in value])
    raise ValueError(f"a parameter of type {type(value).__name__} has no canonical form")


def _framed(kind: bytes, parts: Sequence[bytes]) -> bytes:
    """Join parts with their number and lengths in front: only these parts give these bytes."""
    head = kind + len(parts).to_bytes(8, "big")
    return head + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
