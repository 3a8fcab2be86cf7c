"""A client's turn in a round: what it trains and sends, at which rank, and what it keeps to itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.durable import write_whole
from client.errors import ClientError
from client.i18n import _
from client.ledger import Stage
from client.profile import Profile
from client.round_files import RoundFiles
from client.wire import Assignment, Manifest
from engines.lora.methods import MERGING_METHODS, TWO_TURNS, is_sent, shape_at_rank, sketched_shapes

if TYPE_CHECKING:
    from torch import Tensor

KEPT = "kept.safetensors"
"""What a client keeps to itself of a round (`fedsa`: its B factors; `fedask`: all that it trained, until the
round after it; with control variates: its c_i, should the round count its update); never sent as it is, never
handed over."""


@dataclass(frozen=True)
class Turn:
    """What is particular to one client in one round."""

    number: int = 1
    """Of the round."""
    rank: int | None = None
    """None: the manifest's."""
    own: Mapping[str, Tensor] | None = None
    """What the client kept to itself in its last round, absolute values; None: nothing yet."""
    variate: Mapping[str, Tensor] | None = None
    """SCAFFOLD's c_i, by name of the trained tensors; None: zero, or a run without."""


def require_planned(assignment: Assignment, manifest: Manifest) -> None:
    """Refuse a rank that the run's manifest does not name.

    Raises:
        ClientError: `rank_not_planned`.
    """
    planned = manifest.lora.ranks or (manifest.lora.rank,)
    if assignment.rank is not None and assignment.rank not in planned:
        raise ClientError(
            "rank_not_planned",
            _("the round asks for rank {rank}, and the run's plan names {planned}"),
            rank=assignment.rank,
            planned=", ".join(map(str, planned)),
        )


def manifest_at(values: Mapping[str, Any], rank: int | None) -> Mapping[str, Any]:
    """The manifest's values for a client of this rank: the same scale, smaller factors."""
    lora = values["lora"]
    if rank is None or rank == lora["rank"]:
        return values
    share = rank / lora["rank"]
    alpha = lora["alpha"] * (math.sqrt(share) if lora.get("rank_stabilized") else share)
    tensors = [
        one | {"shape": list(shape_at_rank(one["name"], one["shape"], rank))}
        for one in values.get("tensors", ())
    ]
    return {**values, "lora": lora | {"rank": rank, "alpha": alpha}, "tensors": tensors}


def sent_shapes(values: Mapping[str, Any], turn: Turn) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that this turn sends."""
    method = values["lora"]["method"]
    instead = sketched_shapes(values) if method in TWO_TURNS else {}
    return {
        one["name"]: instead.get(one["name"], tuple(one["shape"]))
        for one in manifest_at(values, turn.rank)["tensors"]
        if one["trained"] and is_sent(method, one["name"], number=turn.number)
    }


def sent_and_kept(
    change: Mapping[str, Tensor], wanted: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part what training changed into what is sent and what stays here."""
    sent = {name: tensor for name, tensor in change.items() if name in wanted}
    return sent, {name: tensor for name, tensor in change.items() if name not in wanted}


def at_rank(adapter: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """A round's adapter for a client of a smaller rank: of every factor the first rows or columns."""
    cut = {}
    for name, tensor in adapter.items():
        shape = shape_at_rank(name, tensor.shape, rank)
        fits = all(length <= whole for length, whole in zip(shape, tensor.shape, strict=True))
        if tensor.dim() == 2 and fits:
            cut[name] = tensor[: shape[0], : shape[1]].contiguous()
        else:
            cut[name] = tensor
    return cut


def most_bytes(manifest: Manifest) -> int:
    """Most bytes of a round's adapter: all trained tensors, what the base weights may have taken up, and the
    bases of a second round of `fedask`, or the control variate.
    """
    trained = sum(math.prod(one.shape) for one in manifest.tensors if one.trained)
    taken = 0
    if manifest.lora.method in MERGING_METHODS:
        shapes = {one.name: one.shape for one in manifest.tensors}
        for name, shape in shapes.items():
            if ".lora_A." in name:
                rows, columns = shapes[name.replace(".lora_A.", ".lora_B.")][0], shape[-1]
                taken += min(rows, columns) * (rows + columns)
    if manifest.lora.method in TWO_TURNS:
        sketched = sketched_shapes(manifest.model_dump(mode="json"))
        taken = sum(math.prod(shape) for name, shape in sketched.items() if ".lora_B." in name)
    if manifest.training.control_variates != "none":
        taken = trained
    return 4 * (trained + taken)


def forget_kept(files: RoundFiles) -> None:
    """Drop what an earlier training for this round kept: its update was discarded, or never made."""
    (files.folder / KEPT).unlink(missing_ok=True)


def kept_before(profile: Profile, run_id: str, number: int) -> dict[str, Tensor] | None:
    """What this client kept to itself in the last round of a run for which it sent an update.

    What was trained for a round and never sent is not charged, and so is not gone on from.
    """
    sent = profile.ledger.book().commitments.get(run_id)
    if sent is None:
        return None
    for earlier in sorted(sent.contributions, reverse=True):
        path = profile.round_folder(run_id, earlier) / KEPT
        if earlier < number and sent.contributions[earlier].stage is not Stage.PREPARED and path.exists():
            return _loaded(path)
    return None


def kept_of(profile: Profile, run_id: str, number: int) -> dict[str, Tensor] | None:
    """What this client kept to itself in one round, if a byte of its update of that round may have left."""
    run = profile.ledger.book().commitments.get(run_id)
    one = None if run is None else run.contributions.get(number)
    path = profile.round_folder(run_id, number) / KEPT
    return _loaded(path) if one is not None and one.stage is not Stage.PREPARED and path.exists() else None


def _loaded(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415  (torch takes seconds to load)

    found: dict[str, Tensor] = load_file(path)
    return found


def keep(files: RoundFiles, change: Mapping[str, Tensor], *, before: Mapping[str, Tensor] | None) -> None:
    """Write what this client keeps to itself, absolute values, into its own round's folder."""
    from safetensors.torch import save  # noqa: PLC0415  (torch takes seconds to load)

    held = {name: tensor + before[name] if before else tensor for name, tensor in change.items()}
    write_whole(files.folder / KEPT, save({name: one.contiguous() for name, one in sorted(held.items())}))
