"""The LoRA A factors that everybody can draw alone: the same bits from the same seed on every machine.

The seed is public. Nothing private, no noise and no sampling may be drawn from here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

_CONTEXT = b"dp-federated-lora-lab lora_A 1\x00"
_BOUND_BITS = 27


def seeded_a(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """Draw one frozen or initial A factor, uniform in (-1/sqrt(k), 1/sqrt(k)) for k columns.

    That is PEFT's own start (Kaiming uniform with a = sqrt 5), but drawn by integer arithmetic from a
    keyed stream, so that it does not depend on a library's generator. Rows are drawn in order: the factor
    of a smaller rank is the top of that of a larger one.

    Args:
        seed: the run's public seed, 0 to 2**63 - 1.
        name: the tensor's name in the adapter file; other names give independent factors.
        shape: (r, k), both at least 1.
    Returns:
        float32, shape (r, k).
    Raises:
        ValueError: the seed or the shape is out of range.
    Source: He et al. 2015, arXiv:1502.01852; nested factors: arXiv:2403.12313 with the rows in order.
    """
    if not 0 <= seed < 2**63:
        raise ValueError("the seed must lie between 0 and 2**63 - 1")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError("an A factor has two dimensions of at least 1")
    rows, columns = shape
    # Odd numbers in (-2**24, 2**24), times floor(2**27 / sqrt(columns)): below 2**51, exact in float64.
    words = _stream_words(seed, name, rows * columns).astype(np.int64)
    odd = 2 * (words >> 8) + 1 - 2**24
    products = odd * math.isqrt((1 << 2 * _BOUND_BITS) // columns)
    values = products.astype(np.float64) * 2.0 ** -(24 + _BOUND_BITS)
    return torch.from_numpy(values.astype(np.float32).reshape(rows, columns))


def _stream_words(seed: int, name: str, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_CONTEXT + name.encode()).derive(
        seed.to_bytes(8, "big")
    )
    keystream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(4 * count))
    return np.frombuffer(keystream, dtype="<u4")
