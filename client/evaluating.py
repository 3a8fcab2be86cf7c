"""How well a release does on a client's own held-out examples, where every client has a model of its own.

For `fedsa`, whose B factors stay with the client. Nothing here opens a connection or writes to the ledger:
what comes out is for the data holder's eyes, and is private data itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from client.errors import ClientError
from client.i18n import _
from client.ledger import Stage
from client.profile import Profile, file_sha256
from client.trainer import train_round
from client.turns import Turn, kept_before
from client.wire import FrozenManifest
from client.workbench import Workbench, read_tensors, refusals
from engines.lora.adapter import initial_adapter
from engines.lora.methods import is_sent
from modelling.adapters import load_adapter
from modelling.cache import CachedExamples
from modelling.evaluation import accuracy, logits_of
from modelling.loss import per_example_loss
from modelling.trained import TrainedPart


def evaluate(
    profile: Profile, *, run_id: str, number: int, manifest: bytes, adapter: bytes, held_out: Path
) -> dict[str, Any]:
    """Measure three models on examples that this client does not train on.

    Args:
        profile: of a client that took part in the run.
        run_id: the run's.
        number: of the round that the release is of.
        manifest: the run's, as it was accepted.
        adapter: the release's file: shared A and head, and B of zeros.
        held_out: JSON lines as the data set's.

    Returns:
        `examples` (how many are held out), `rounds` (those of this client up to the release), and mean `loss`
        (nats) and `accuracy` of
        `global`, the release as it is: with B zero, so that of what was learned only the head counts;
        `personalized`, the release with this client's own B of its last round up to it;
        `local_only`, as many rounds on this client's data alone, with the plan's steps, clip and noise.

    Raises:
        ClientError: `nothing_personal`, `run_not_joined`, `held_out_is_trained_on`, or what reading the data,
            the model and the release refuses.
    """
    frozen = FrozenManifest(manifest)
    rounds, own = _taken_part(profile, frozen, run_id=run_id, number=number)
    if file_sha256(held_out) == profile.config.data_sha256:
        raise ClientError("held_out_is_trained_on", _("the held-out file is the data set itself"))
    part, examples, others = Workbench().held_out(profile, frozen, held_out)
    released = read_tensors(adapter)
    with refusals():
        models = {
            "global": released,
            "personalized": {**released, **own},
            "local_only": _alone(part, examples, frozen.values, rounds=len(rounds)),
        }
        figures = {name: _figures(part, others, tensors) for name, tensors in models.items()}
    return {"examples": len(others), "rounds": rounds, **figures}


def _taken_part(
    profile: Profile, frozen: FrozenManifest, *, run_id: str, number: int
) -> tuple[list[int], dict[str, Tensor]]:
    """The rounds up to this one for which the client sent something, and what it kept to itself of them."""
    if frozen.manifest.lora.method != "fedsa":
        raise ClientError(
            "nothing_personal",
            _("under {method} clients keep nothing to themselves: every model is the release"),
            method=frozen.manifest.lora.method,
        )
    joined = profile.ledger.book().commitments.get(run_id)
    own = kept_before(profile, run_id, number + 1)
    if joined is None or own is None:
        raise ClientError("run_not_joined", _("this client sent nothing for the run up to that release"))
    frozen.require(joined.manifest_sha256)
    sent = (at for at, one in joined.contributions.items() if one.stage is not Stage.PREPARED)
    return sorted(at for at in sent if at <= number), own


def _alone(
    part: TrainedPart, examples: CachedExamples, values: Mapping[str, Any], *, rounds: int
) -> dict[str, Tensor]:
    """What this client would have without the others: each round goes on from its own change."""
    method = values["lora"]["method"]
    whole = initial_adapter(values["tensors"], values["lora"]["seed"])
    for number in range(1, rounds + 1):
        shared = {name: tensor for name, tensor in whole.items() if is_sent(method, name)}
        kept = {name: tensor for name, tensor in whole.items() if not is_sent(method, name)}
        change = train_round(part, examples, shared, manifest=values, turn=Turn(number, own=kept))
        whole = {name: tensor + change[name] for name, tensor in whole.items()}
    return whole


def _figures(part: TrainedPart, examples: CachedExamples, adapter: Mapping[str, Tensor]) -> dict[str, float]:
    load_adapter(part.model, adapter)
    logits = logits_of(part, examples)
    loss = float(per_example_loss(logits, examples.labels).mean())
    return {"loss": loss, "accuracy": accuracy(logits, examples.labels)}
