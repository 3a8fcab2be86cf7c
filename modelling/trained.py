"""The part of a model that is trained: from the hidden states below the first adapter to the logits.

The frozen layers below have done their work in `modelling.cache`; here they are passed over.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn

from modelling.adapters import layers_of
from modelling.architectures import PassedHidden, PassedLayer, architecture_of
from modelling.spec import ModelSpec


class TrainedPart(nn.Module):
    """Hidden states in, one row of logits per text out; computed by the model's own upper modules.

    Takes the model over: its frozen lower layers and its embeddings are dropped and their memory freed.
    The names of all adapter tensors stay the same.
    """

    def __init__(self, model: PeftModel, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        base = model.get_base_model()
        layers = layers_of(spec, base)
        for number in range(spec.first_trained_layer):
            layers[number] = PassedLayer()
        base.set_submodule(architecture_of(spec.base.architecture).embeddings, PassedHidden())
        self.eval()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            hidden: shape (n, tokens, width): what enters the first layer with an adapter.
            mask: shape (n, tokens), 1 where there is a token.

        Returns:
            float32, shape (n, labels). A row depends on its own text alone.
        """
        logits = self.model(inputs_embeds=hidden, attention_mask=mask).logits
        return pooled(logits, mask, pooling=self.spec.task.pooling)


def pooled(logits: Tensor, mask: Tensor, *, pooling: str) -> Tensor:
    """Turn the head's output into one float32 row per text, shape (n, labels).

    Args:
        logits: (n, tokens, labels) for pooling `mean`, (n, labels) for `model`.
        mask: shape (n, tokens), 1 where there is a token.
        pooling: as in the manifest's task.
    """
    if pooling == "model":
        return logits.float()
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (logits.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
