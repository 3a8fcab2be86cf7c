"""Each kind of security event: how sure one is that it is no accident, and what an administrator might do.

Advice alone: nothing here or elsewhere acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Advice(StrEnum):
    """What to do first."""

    WATCH = "watch"  # nothing yet; see whether it comes again
    ASK_OWNER = "ask_owner"  # ask whom it is about, by another way than this server
    REVOKE_CREDENTIALS = "revoke_credentials"  # a key or session is in somebody else's hands
    REVIEW_EVIDENCE = "review_evidence"  # the round's evidence says more than the event
    HOLD_CLIENTS = "hold_clients"  # suspend until it is explained; that can be taken back


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a kind before any one event."""

    score: float
    """0 (may well be an accident) to 1 (cannot be one); an event whose evidence says more has its own."""
    advice: Advice


UNKNOWN = Kind(0.5, Advice.WATCH)
"""Of an event that an earlier or a later release noted."""
KINDS: Mapping[str, Kind] = {
    "address_not_allowed": Kind(0.7, Advice.REVOKE_CREDENTIALS),
    "assertion_replayed": Kind(0.6, Advice.ASK_OWNER),
    "burst_registration": Kind(0.3, Advice.ASK_OWNER),
    "client_at_quarantine": Kind(0.7, Advice.REVIEW_EVIDENCE),
    "client_at_suspend": Kind(0.9, Advice.REVIEW_EVIDENCE),
    "clients_alike": Kind(0.7, Advice.HOLD_CLIENTS),
    "proof_replayed": Kind(0.6, Advice.ASK_OWNER),
    "refresh_reused": Kind(0.9, Advice.REVOKE_CREDENTIALS),
    "too_many_attempts": Kind(0.4, Advice.WATCH),
    "update_copied": Kind(0.8, Advice.HOLD_CLIENTS),
    "update_norm_odd": Kind(0.4, Advice.REVIEW_EVIDENCE),
    "update_too_soon": Kind(0.7, Advice.ASK_OWNER),
    "update_untrained": Kind(0.8, Advice.ASK_OWNER),
}


def kind_of(name: str) -> Kind:
    """What is known of a kind."""
    return KINDS.get(name, UNKNOWN)
