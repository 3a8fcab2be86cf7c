"""SCAFFOLD's c: it lies beside the adapter, and moves at aggregation by exactly the updates that counted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.runs.training import Training
from engines.aggregation.client_terms import next_shared_variate
from engines.lora.states import VARIATE, variates_in


def moved_variates(
    plan: Training,
    state: Mapping[str, Tensor],
    mean_change: Mapping[str, Tensor],
    *,
    counted: int,
    clients: int,
) -> dict[str, Tensor]:
    """Return c after a round, float32, under the names that a state holds it by.

    Args:
        plan: the manifest's local steps.
        state: what the round started from.
        mean_change: the unweighted mean of the counted updates, by name.
        counted: how many they are.
        clients: of the whole run, whether they were invited or not.
    """
    return {
        f"{name}{VARIATE}": next_shared_variate(
            shared.double(),
            mean_change[name].double(),
            cohort=counted,
            population=clients,
            steps=plan.local_steps,
            rate=plan.learning_rate,
        ).float()
        for name, shared in variates_in(state).items()
    }
