"""Canaries: made-up clients with random directions, in or out by coins that stay secret to the end.

Coins and directions follow from one secret of the operating system. Its commitment is published before
the run, the secret after the scores are fixed; then anyone can draw the same canaries again and check that
no coin was chosen afterwards. A canary holds nobody's data, takes a slot like any client, is clipped like
any client, and is declared.
"""

import hashlib
import hmac
import math
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engines.privacy.noise import NoiseStream

SECRET_BYTES = 32
_LABEL = b"audit-canaries/1"


class Canaries:
    """A fixed number of canaries for one audit of one run."""

    def __init__(self, secret: bytes, *, count: int, dimension: int) -> None:
        """Draw the canaries of a secret.

        Args:
            secret: 32 bytes that nobody who scores may know before the scores are fixed.
            count: m, 20 to 100,000.
            dimension: d, length of the flat update, at least 2.
        Raises:
            ValueError: an argument is out of range.
        """
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a canaries' secret has {SECRET_BYTES} bytes, not {len(secret)}")
        if not 20 <= count <= 100_000 or dimension < 2:
            raise ValueError("an audit needs 20 to 100,000 canaries, and at least 2 dimensions")
        self._secret, self.count, self.dimension = secret, count, dimension

    @classmethod
    def fresh(cls, count: int, dimension: int) -> "Canaries":
        """Draw canaries from the operating system."""
        return cls(os.urandom(SECRET_BYTES), count=count, dimension=dimension)

    @property
    def secret(self) -> bytes:
        """What opens the commitment. Before the scores are fixed: in the operator's store only."""
        return self._secret

    @property
    def commitment(self) -> str:
        """SHA-256 over the secret and the shape, in hex; hides the secret, since that is 32 random bytes."""
        return hashlib.sha256(b"commitment:" + self._context() + self._secret).hexdigest()

    def coins(self) -> NDArray[np.bool_]:
        """Return the fair coins, shape (m,): True is in. Secret until the scores are fixed."""
        return _bits(self._stream("coins"), self.count)

    def direction(self, index: int) -> NDArray[np.float32]:
        """Return the unit vector of one canary, shape (d,): independent fair signs over sqrt(d).

        Its covariance is I/d, so its cosine with any vector drawn apart from it has mean 0 and variance
        exactly 1/d, as for a uniform direction, and near normality wherever no few coordinates dominate.

        Raises:
            ValueError: there is no such canary.
        """
        if not 0 <= index < self.count:
            raise ValueError("there is no such canary")
        signs = _bits(self._stream(f"direction {index}"), self.dimension)
        size = 1.0 / math.sqrt(self.dimension)
        return np.where(signs, size, -size).astype(np.float32)

    def directions(self) -> Iterator[NDArray[np.float32]]:
        """Walk through the directions of all canaries, in or out."""
        return (self.direction(index) for index in range(self.count))

    def _context(self) -> bytes:
        return _LABEL + b":%d:%d:" % (self.count, self.dimension)

    def _stream(self, purpose: str) -> NoiseStream:
        """Open the stream of one purpose: coins say nothing about directions, and none about another."""
        info = self._context() + purpose.encode()
        return NoiseStream.from_key(hmac.digest(self._secret, info, "sha256"))


def _bits(stream: NoiseStream, count: int) -> NDArray[np.bool_]:
    taken = np.frombuffer(stream.take((count + 7) // 8), dtype=np.uint8)
    return np.unpackbits(taken)[:count].astype(np.bool_)
