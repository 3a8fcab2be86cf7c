"""Giving a run's budget back: only when nothing was sent, and by a signature that binds for ever."""

from __future__ import annotations

import base64

from client.profile import Profile
from client.session import Session

STATEMENT = "nothing was sent for run {run_id} by client {client_id} and nothing will be"


def disclaim(profile: Profile, session: Session, run_id: str) -> None:
    """Void the run in the data set's ledger first, then tell the server, signed.

    The other order could send after the server had given the budget back.
    """
    profile.ledger.void(run_id)
    statement = STATEMENT.format(run_id=run_id, client_id=profile.config.client_id)
    signature = base64.urlsafe_b64encode(profile.key().sign(statement.encode())).rstrip(b"=").decode()
    session.post(f"/v1/runs/{run_id}/disclaimers", {"statement": statement, "signature": signature})
