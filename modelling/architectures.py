"""Where a model keeps its layers: all that the rest of this room knows about an architecture."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelling.errors import ModelRefused


@dataclass(frozen=True)
class Architecture:
    """Dotted paths inside a `transformers` model of this type."""

    layers: str
    """The list of layers; each takes hidden states first and gives hidden states back."""
    embeddings: str
    """The module that turns token numbers, or `inputs_embeds`, into the first hidden states."""
    usual_targets: tuple[str, ...]
    """Where LoRA goes if nobody says otherwise: the projections of queries and values."""
    mean_head: str
    """The head that pooling `mean` trains."""
    positions: str | None = None
    """A table of positions that the body adds to `inputs_embeds` by itself; the hidden states hold it."""
    is_causal: bool = False
    """A token sees those before it, so the model's own head reads a text at its last token."""
    body: str = ""
    """The model below the head; needed where the head reads the last token."""
    head: str = ""
    """The head of the model's own sequence classification; needed where it reads the last token."""
    fan_in_fan_out: bool = False
    """Linear layers keep their weights transposed (`Conv1D` of `transformers`)."""


ARCHITECTURES = {
    "bert": Architecture(
        layers="bert.encoder.layer",
        embeddings="bert.embeddings",
        usual_targets=("query", "value"),
        mean_head="classifier",
    ),
    "llama": Architecture(
        layers="model.layers",
        embeddings="model.embed_tokens",
        usual_targets=("q_proj", "v_proj"),
        mean_head="score",
        is_causal=True,
        body="model",
        head="score",
    ),
    "gpt2": Architecture(
        layers="transformer.h",
        embeddings="transformer.wte",
        usual_targets=("c_attn",),
        mean_head="classifier",
        positions="transformer.wpe",
        is_causal=True,
        body="transformer",
        head="score",
        fan_in_fan_out=True,
    ),
}


def architecture_of(name: str) -> Architecture:
    """Return the paths of an architecture.

    Raises:
        ModelRefused: `unsupported_architecture`.
    """
    if name not in ARCHITECTURES:
        raise ModelRefused("unsupported_architecture", f"the architecture {name!r} is not supported")
    return ARCHITECTURES[name]


class PassedHidden(nn.Module):
    """Stands where embeddings stood: hands on the hidden states that were computed before."""

    def forward(self, *, inputs_embeds: Tensor, **_: object) -> Tensor:
        """Return `inputs_embeds` as they are."""
        return inputs_embeds


class PassedPositions(nn.Module):
    """Stands where a table of positions stood: the hidden states hold them already."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """Return zero, which is added to every hidden state."""
        return torch.zeros((), device=position_ids.device)


class PassedLayer(nn.Module):
    """Stands where a frozen layer stood: its work is already in the hidden states."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Return `hidden_states` as they are."""
        return hidden_states
