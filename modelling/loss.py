"""The loss of each example by itself.

`labels=` of a `transformers` model is never used: it averages over the batch, so that one example would
change the gradients of the others and clipping would bound nothing.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy


def per_example_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each example, shape (n,), in nats.

    Args:
        logits: float32, shape (n, labels).
        labels: int64, shape (n,).
    """
    return cross_entropy(logits, labels, reduction="none")
