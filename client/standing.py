"""A data set's ledger as a person reads it: what is spent goes up, what is left goes down."""

from __future__ import annotations

from client.amounts import delta_text, epsilon_text
from client.i18n import _, translate
from client.ledger import Commitment
from client.profile import Profile


def status_lines(profile: Profile) -> list[str]:
    """Describe the ledger, one line for the total and one for each run."""
    book, ceiling = profile.ledger.book(), profile.policy.ceiling
    left = max(ceiling.epsilon - book.epsilon_committed, 0)
    lines = [
        translate(
            _("data set {name}: epsilon {sent} sent, {committed} committed, {left} left of {ceiling}"),
            name=book.dataset,
            sent=epsilon_text(book.epsilon_spent, spent=True),
            committed=epsilon_text(book.epsilon_committed, spent=True),
            left=epsilon_text(left, spent=False),
            ceiling=epsilon_text(ceiling.epsilon, spent=False),
        ),
        translate(
            _("delta {committed} committed, {left} left of {ceiling}"),
            committed=delta_text(book.delta_committed),
            left=delta_text(max(ceiling.delta - book.delta_committed, 0)),
            ceiling=delta_text(ceiling.delta),
        ),
    ]
    return lines + [_run_line(run) for run in book.commitments.values()]


def _run_line(run: Commitment) -> str:
    if run.void:
        return translate(_("run {run}: nothing was sent; its cost was given back"), run=run.run_id)
    if not run.is_private:
        return translate(
            _("run {run}: {sent} of {rounds} rounds sent, WITHOUT any privacy claim"),
            run=run.run_id,
            sent=run.rounds_sent,
            rounds=len(run.epsilon_by_round),
        )
    if run.trust == "central":
        return translate(
            _("run {run}: {sent} of {rounds} rounds sent, epsilon {whole}; the server adds the noise"),
            run=run.run_id,
            sent=run.rounds_sent,
            rounds=len(run.epsilon_by_round),
            whole=epsilon_text(run.epsilon, spent=True),
        )
    return translate(
        _("run {run}: {sent} of {rounds} rounds sent, epsilon {spent} of {whole}"),
        run=run.run_id,
        sent=run.rounds_sent,
        rounds=len(run.epsilon_by_round),
        spent=epsilon_text(run.epsilon_spent, spent=True),
        whole=epsilon_text(run.epsilon, spent=True),
    )
