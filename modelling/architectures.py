"""Where a model keeps its layers: all that the rest of this room knows about an architecture."""

from dataclasses import dataclass

from torch import Tensor, nn

from modelling.errors import ModelRefused


@dataclass(frozen=True)
class Architecture:
    """Dotted paths inside a `transformers` model of this type."""

    layers: str
    """The list of layers; each takes hidden states first and gives hidden states back."""
    embeddings: str
    """The module that turns token numbers, or `inputs_embeds`, into the first hidden states."""


ARCHITECTURES = {"bert": Architecture(layers="bert.encoder.layer", embeddings="bert.embeddings")}


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


class PassedLayer(nn.Module):
    """Stands where a frozen layer stood: its work is already in the hidden states."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Return `hidden_states` as they are."""
        return hidden_states
