"""One byte form for JSON values, so that two parties hash and sign the same thing."""

import hashlib
import json
from typing import Any

Json = dict[str, Any]


def canonical_bytes(value: Any) -> bytes:
    """Serialize with sorted keys, no blanks, UTF-8; NaN and infinity are refused (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def canonical_sha256(value: Any) -> str:
    """Hex SHA-256 of the canonical form."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()
