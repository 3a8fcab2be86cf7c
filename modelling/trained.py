"""The part of a model that is trained: from the hidden states below the first adapter to the logits.

The frozen layers below have done their work in `modelling.cache`; here they are passed over.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn

from modelling.adapters import layers_of
from modelling.architectures import PassedHidden, PassedLayer, PassedPositions, architecture_of
from modelling.merging import BaseWeights
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
        self._architecture = architecture_of(spec.base.architecture)
        self.base_weights = BaseWeights(model, is_transposed=self._architecture.fan_in_fan_out)
        base.set_submodule(self._architecture.embeddings, PassedHidden())
        if self._architecture.positions is not None:
            base.set_submodule(self._architecture.positions, PassedPositions())
        self.eval()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            hidden: shape (n, tokens, width): what enters the first layer with an adapter.
            mask: shape (n, tokens), 1 where there is a token.

        Returns:
            float32, shape (n, labels). A row depends on its own text alone.
        """
        if self.spec.task.pooling == "model" and self._architecture.is_causal:
            return self._at_last_token(hidden, mask)
        logits = self.model(inputs_embeds=hidden, attention_mask=mask).logits
        return pooled(logits, mask, pooling=self.spec.task.pooling)

    def _at_last_token(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Read the head at each text's own last token.

        The model's own forward cannot: without token numbers it takes the last position, padding or not.
        """
        base = self.model.get_base_model()
        body = base.get_submodule(self._architecture.body)
        states = body(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        logits: Tensor = base.get_submodule(self._architecture.head)(states)
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask).argmax(dim=1)
        return logits[torch.arange(len(last), device=mask.device), last].float()


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
