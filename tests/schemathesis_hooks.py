"""Loaded by schemathesis: no long-polls, ids that exist in most places where one fits, and a check."""

import base64
import hashlib
import json
import os
from typing import Any
from uuid import UUID

import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.proofs import Hand

_KEY = os.environ["DPFL_TEST_KEY"]
HAND = Hand(Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(_KEY + "="))) if _KEY else None
"""Who proves that the training client's token is held."""
KNOWN: dict[str, list[str]] = json.loads(os.environ["DPFL_TEST_IDS"])


def known_instead_of(name: str, value: object) -> object:
    """Three times in four an id of the seeded objects; the choice depends on the drawn value alone."""
    try:
        drawn = UUID(str(value))
    except ValueError:
        return value  # a malformed id is a case of its own
    digest = hashlib.sha256(drawn.bytes).digest()
    known = KNOWN.get(name, [])
    return known[digest[1] % len(known)] if known and digest[0] % 4 else value


WHOLE = "int_type"
"""To JSON Schema 1.0 is an integer, to us not; a list that held it is then found too short as well."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Change a case just before it is sent."""
    for name, value in (case.path_parameters or {}).items():
        case.path_parameters[name] = known_instead_of(name, value)
    if case.query and "wait" in case.query:
        case.query["wait"] = 0
    left_out = getattr(case.meta.phase.data, "parameter", None) if case.meta else None
    # With a header of its own changed, a case would no longer count as one that lacks its token.
    if HAND is not None and left_out != "Authorization":
        address = os.environ["DPFL_TEST_PUBLIC_URL"] + case.formatted_path
        case.headers["DPoP"] = HAND.proof(case.method, address, token=os.environ["DPFL_TEST_TOKEN"])


@schemathesis.check
def refuses_valid_data_by_meaning_alone(context: Any, response: Any, case: Any) -> None:
    """Let no rule refuse valid data that the description could have told; meaning may."""
    generated = case.meta.generation.mode if case.meta else None
    if generated is None or not generated.is_positive or response.status_code != 422:
        return
    said = response.json()
    faults = said.get("errors", [])
    untold = [fault for fault in faults if fault["rule"] != "value_error"]
    if not any(fault["rule"] == WHOLE for fault in faults):
        assert not untold, f"the description does not tell of {untold}"
