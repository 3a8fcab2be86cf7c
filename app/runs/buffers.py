"""Buffered asynchronous rounds: whether a plan for them holds, whatever order its clients come in.

A buffer is a round that closes as soon as K updates are in; K is the quorum. Its price is that of P updates
of one client: arrival order amplifies nothing, since everybody sees it.
"""

from __future__ import annotations

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Everyone, Manifest


class BufferRefused(Invalid):
    """Buffered rounds under conditions for which they are not proved or not built."""

    code, title = "buffer_refused", _("Buffered rounds cannot be used like this")
    meaning = _(
        "Who sends, and when, is public in buffered rounds. Updates of different ages are weighed, and their "
        "sum divided by the buffer's constant size; each of them is noised by its client."
    )
    remedy = _(
        "Use trust `local` with relation `zero_out`, cohort `everyone`, rule `mean` without mixing, one rank "
        "for all clients, and an equal min_updates and max_updates; or set `buffered` to null."
    )


class BufferStarves(Invalid):
    """Buffers that might never fill."""

    code, title = "buffer_starves", _("The buffers might never fill")
    meaning = _(
        "Each client sends at most `participations` updates in a run, and at most one for a buffer: fast "
        "clients may be through before the last buffers have enough of others."
    )
    remedy = _("Plan more participations or clients, or fewer rounds, or smaller buffers.")


def check_buffers(manifest: Manifest, *, clients: int) -> None:
    """Refuse a plan for buffered rounds that does not hold; raises BufferRefused or BufferStarves."""
    buffered, quorum = manifest.buffered, manifest.quorum
    if buffered is None:
        return
    for need, holds in _conditions(manifest):
        if not holds:
            raise BufferRefused(need)
    if buffered.participations > manifest.rounds:
        raise BufferRefused(
            _("one client sends at most one update for each of {rounds} rounds: plan no more participations"),
            rounds=manifest.rounds,
        )
    # Before the last buffer opens, (rounds - 1) K updates are sent: so many clients at most are through.
    sent = (manifest.rounds - 1) * quorum.max_updates
    through = 0 if buffered.participations >= manifest.rounds else sent // buffered.participations
    if clients - through < quorum.max_updates:
        raise BufferStarves(
            _("{through} of {clients} client(s) may be through before the last of {rounds} buffers, which "
              "needs {size}"),
            through=through,
            clients=clients,
            rounds=manifest.rounds,
            size=quorum.max_updates,
        )  # fmt: skip


def _conditions(manifest: Manifest) -> list[tuple[str, bool]]:
    privacy, aggregation, quorum = manifest.privacy, manifest.aggregation, manifest.quorum
    optimizer = aggregation.server_optimizer
    return [
        (_("buffered rounds need trust `local` or `none`"), privacy.trust in {"local", "none"}),
        (_("buffered rounds need relation `zero_out`"), privacy.relation == "zero_out"),
        (_("buffered rounds need cohort `everyone`"), isinstance(privacy.cohort, Everyone)),
        (
            _("buffered rounds need rule `mean` without mixing"),
            (aggregation.rule, aggregation.mixing) == ("mean", "none"),
        ),
        (
            _("buffered rounds need equal min_updates and max_updates: the buffer's size"),
            quorum.min_updates == quorum.max_updates,
        ),
        (_("buffered rounds need one rank: lora.ranks is null"), not manifest.lora.has_mixed_ranks),
        (_("a buffer closes when it is full: quorum.seal is null or `quorum`"), quorum.seal != "deadline"),
        (
            _("buffered rounds go with another server optimizer than `fedexp`"),
            optimizer is None or optimizer.kind != "fedexp",
        ),
    ]
