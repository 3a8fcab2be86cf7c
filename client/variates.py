"""SCAFFOLD's c_i at the client: what it is after a round, and which round's holds.

The server alone decides what counts. Each round's folder keeps the c_i that would follow from its update; of
these the one holds that belongs to the last round which the server says it counted. What was not counted has
so no effect, at the client as in the server's c.
"""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import load
from torch import Tensor

from client.errors import RoundMissed
from client.i18n import _
from client.profile import Profile
from client.training import Training
from client.turns import Turn, kept_of
from client.wire import Assignment
from engines.aggregation.client_terms import next_own_variate
from engines.lora.states import variates_in


def variate_of(profile: Profile, assignment: Assignment) -> dict[str, Tensor] | None:
    """Return c_i as a round starts; None: zero, as no update of this client was counted yet.

    Raises:
        RoundMissed: `variate_lost`: an update was counted whose c_i is not here any more. Another one in its
            place would leave the server's c off for ever, so this client sends for no further round.
    """
    if assignment.counted is None:
        return None
    found = None
    if assignment.counted < assignment.number:
        found = kept_of(profile, str(assignment.run_id), assignment.counted)
    if found is None:
        raise RoundMissed(
            "variate_lost",
            _("the control variate of round {number}, which the server counted, is not here any more"),
            number=assignment.counted,
        )
    return found


def next_variate(
    plan: Training, turn: Turn, adapter: bytes, update: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return c_i as it is once the round has counted the update: a function of what is sent.

    Args:
        plan: the manifest's local steps.
        turn: with c_i as the round started.
        adapter: the round's, as it was downloaded, with the server's c.
        update: what is sent, float32, by name.
    """
    shared = variates_in(load(adapter))
    fresh = {}
    for name, change in update.items():
        own = shared[name].new_zeros(shared[name].shape) if turn.variate is None else turn.variate[name]
        fresh[name] = next_own_variate(
            own.double(),
            shared[name].double(),
            change.double(),
            steps=plan.local_steps,
            rate=plan.learning_rate,
        ).float()
    return fresh
