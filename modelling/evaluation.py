"""How well an adapter does on examples that may be looked at: a public set, or one's own.

None of these numbers may leave a client whose trust is `local`.
"""

import torch
from scipy.stats import rankdata
from torch import Tensor

from modelling.cache import CachedExamples
from modelling.loss import per_example_loss
from modelling.trained import TrainedPart

_BATCH = 256


def logits_of(part: TrainedPart, examples: CachedExamples) -> Tensor:
    """Return the logits of all examples in float32, shape (n, labels)."""
    rows = []
    with torch.inference_mode():
        for batch in examples.batches(_BATCH):
            rows.append(part(batch.hidden, batch.mask))
    return torch.cat(rows).clone() if rows else torch.zeros((0, len(part.spec.task.labels)))


def example_losses(part: TrainedPart, examples: CachedExamples) -> Tensor:
    """Return each example's cross-entropy under the adapter loaded now, shape (n,), in nats."""
    return per_example_loss(logits_of(part, examples), examples.labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of examples whose largest logit is their label's.

    Raises:
        ValueError: there is no example.
    """
    if len(labels) == 0:
        raise ValueError("accuracy needs at least one example")
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())


def auc(scores: Tensor, positive: Tensor) -> float:
    """Return the probability that a positive scores above a negative, ties counting half.

    Args:
        scores: shape (n,), larger for positives.
        positive: bool, shape (n,).

    Raises:
        ValueError: one of the two kinds is absent, or a score is not a number.
    """
    values, kinds = scores.to(torch.float64).numpy(), positive.to(torch.bool).numpy()
    positives, negatives = int(kinds.sum()), int((~kinds).sum())
    if positives == 0 or negatives == 0 or bool(scores.isnan().any()):
        raise ValueError("the AUC needs positives, negatives and scores that are numbers")
    above = float(rankdata(values)[kinds].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)
