"""The two messages of `fedask`: a sketch of what was trained, and in the round after it the other side of it.

Only the first of the two rounds looks at data. What it trained carries its noise already, stays in the
round's folder, and both messages are functions of it and of what the server published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from client.errors import ClientError
from client.i18n import _
from client.turns import Turn, manifest_at
from engines.lora.factors import Pair
from engines.lora.fedask import answers, sketches
from engines.lora.methods import sketched_shapes
from engines.lora.patterns import LoraPattern
from engines.lora.states import bases_in, modules_in, parted


def trained_whole(adapter: bytes, change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a client trained, to be kept: factors as they are now, and heads by their change.

    Args:
        adapter: the round's, as it was downloaded; a smaller client has the first corner of each factor.
        change: by how much every tensor moved, at the client's rank.
    """
    start, _base = parted(load(adapter))
    return {
        name: one + start[name][: one.shape[0], : one.shape[1]] if ".lora_" in name else one
        for name, one in change.items()
    }


def first_message(values: Mapping[str, Any], turn: Turn, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is sent in an odd round.

    Args:
        values: the run's manifest.
        turn: of this client.
        whole: what it trained.
    """
    pairs = _pairs(values, turn, whole)
    return sketches(pairs, sketched_shapes(values), seed=values["lora"]["seed"], number=turn.number)


def second_message(
    values: Mapping[str, Any], turn: Turn, whole: Mapping[str, Tensor], adapter: bytes
) -> dict[str, Tensor]:
    """Return what is sent in an even round, about what was trained in the one before.

    Args:
        values: the run's manifest.
        turn: of this client.
        whole: what it trained then.
        adapter: the round's, with the bases that the server made of the first messages.
    Raises:
        ClientError: `adapter_unusable`.
    """
    try:
        sent = answers(_pairs(values, turn, whole), bases_in(load(adapter)))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ClientError(
            "adapter_unusable", _("The round's adapter does not fit the run's model.")
        ) from error
    heads = {name: one for name, one in whole.items() if ".lora_" not in name}
    if not all(bool(torch.isfinite(one).all()) for one in sent.values()):
        raise ClientError("adapter_unusable", _("The round's adapter does not fit the run's model."))
    return {**sent, **heads}


def _pairs(values: Mapping[str, Any], turn: Turn, whole: Mapping[str, Tensor]) -> dict[str, Pair]:
    mine = manifest_at(values, turn.rank)
    scales = LoraPattern.from_plan(mine["lora"])
    return {
        module: Pair(
            whole[f"{module}.lora_B.weight"], whole[f"{module}.lora_A.weight"], scales.at(module).factor
        )
        for module in modules_in(mine["tensors"])
    }
