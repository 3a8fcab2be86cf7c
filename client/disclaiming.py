"""Giving a run's budget back: only when nothing was sent, and by a signature that binds for ever."""

from __future__ import annotations

import base64

from client.asking import run_state
from client.errors import ClientError
from client.i18n import _
from client.profile import Profile
from client.serving import OVER
from client.session import Session

STATEMENT = "nothing was sent for run {run_id} by client {client_id} and nothing will be"


def disclaim(profile: Profile, session: Session, run_id: str) -> None:
    """Ask whether the run is over, void it in the data set's ledger, then tell the server, signed.

    A run that still goes on is not voided: its client would be out of it for nothing. Void comes before the
    signature, since the other order could send after the server had given the budget back. What a crash
    leaves is a run that is void here alone, which costs nobody anything; asked again, the server is told.
    """
    if run_state(session, run_id).state not in OVER:
        raise ClientError(
            "run_not_over", _("run {run} still goes on: wait until it has ended, or stop it"), run=run_id
        )
    known = profile.ledger.book().commitments.get(run_id)
    if known is None or not known.void:
        profile.ledger.void(run_id)
    statement = STATEMENT.format(run_id=run_id, client_id=profile.config.client_id)
    signature = base64.urlsafe_b64encode(profile.key().sign(statement.encode())).rstrip(b"=").decode()
    session.post(f"/v1/runs/{run_id}/disclaimers", {"statement": statement, "signature": signature})
