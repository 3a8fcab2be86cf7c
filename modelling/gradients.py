"""The gradient of each example by itself, through Opacus hooks on the modules that are trained.

What leaves this module is not private yet: it goes to `engines.privacy.mechanism` and nowhere else.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor

from modelling.adapters import trained_parameters
from modelling.cache import CachedExamples
from modelling.errors import ModelRefused
from modelling.loss import per_example_loss
from modelling.trained import TrainedPart

_BATCH = 64


@contextmanager
def per_example_hooks(part: TrainedPart) -> Iterator[None]:
    """Put the hooks on; inside, `per_example_gradients` works. They hook in place and rename nothing."""
    hooks = GradSampleHooks(part, loss_reduction="sum", strict=True)
    part.train()  # hooks record nothing in evaluation mode; every dropout is zero
    try:
        with warnings.catch_warnings():
            # The input of lora_B under `ffa` needs no gradient, and hooks on such modules are exact.
            warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")
            yield
    finally:
        part.eval()
        part.zero_grad(set_to_none=True)
        hooks.cleanup()


def per_example_gradients(part: TrainedPart, batch: CachedExamples, *, bf16: bool = False) -> list[Tensor]:
    """Return the gradient of every example's own loss.

    The loss of an example is taken by itself, so a row depends on its own text and label alone: replacing
    any other example of the batch, by one that is not finite even, leaves it the same bit for bit.

    Args:
        part: inside `per_example_hooks`.
        batch: n examples; n may be 0.
        bf16: compute the frozen matrices in bfloat16.

    Returns:
        One tensor (n, *shape) a trained parameter, in the order of `trained_parameters`.
    """
    parameters = trained_parameters(part.model)
    # Starts with no rows: an empty batch never enters the model, which could not reshape it.
    chunks: list[list[Tensor]] = [
        [parameter.new_zeros((0, *parameter.shape)) for parameter in parameters.values()]
    ]
    chunks.extend(_of_chunk(part, chunk, bf16=bf16) for chunk in batch.batches(_BATCH))
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def per_person_gradients(
    part: TrainedPart, batch: CachedExamples, *, persons: int, bf16: bool = False
) -> list[Tensor]:
    """Return the gradient of the sum of every person's losses, over all of that person's examples.

    A row holds one person's examples alone, summed in their order: no other person's change it. Nothing is
    clipped here, so the one clip that follows bounds the person, whatever the number of records.

    Args:
        part: inside `per_example_hooks`.
        batch: examples that say whose they are, by numbers below `persons`.
        persons: number of rows; it may be 0, and a person without an example has a row of zeros.
        bf16: compute the frozen matrices in bfloat16.

    Returns:
        One float64 tensor (persons, *shape) a trained parameter, in the order of `trained_parameters`.

    Raises:
        ValueError: the examples were read without persons.
    """
    if batch.persons is None:
        raise ValueError("these examples do not say whose they are")
    sums = [
        torch.zeros((persons, *parameter.shape), dtype=torch.float64)
        for parameter in trained_parameters(part.model).values()
    ]
    for start in range(0, len(batch), _BATCH):
        chunk = batch.take(torch.arange(start, min(start + _BATCH, len(batch))))
        owners = batch.persons[start : start + _BATCH]
        for total, found in zip(sums, _of_chunk(part, chunk, bf16=bf16), strict=True):
            total.index_add_(0, owners, found.to(torch.float64))
    return sums


def summed_gradients(part: TrainedPart, batch: CachedExamples, *, bf16: bool = False) -> list[Tensor]:
    """Return the gradient of the SUM of the examples' losses, without any privacy, one tensor a parameter."""
    parameters = trained_parameters(part.model)
    sums = [torch.zeros_like(parameter) for parameter in parameters.values()]
    for chunk in batch.batches(_BATCH):
        loss = _losses(part, chunk, bf16=bf16).sum()
        found = torch.autograd.grad(loss, list(parameters.values()))
        sums = [whole + part_sum for whole, part_sum in zip(sums, found, strict=True)]
    return sums


def _of_chunk(part: TrainedPart, chunk: CachedExamples, *, bf16: bool) -> list[Tensor]:
    _losses(part, chunk, bf16=bf16).sum().backward()  # type: ignore[no-untyped-call]  # torch has none
    gradients = []
    for name, parameter in trained_parameters(part.model).items():
        found = getattr(parameter, "grad_sample", None)
        if not isinstance(found, Tensor) or found.shape != (len(chunk), *parameter.shape):
            raise ModelRefused("no_example_gradients", f"{name} has no per-example gradients")
        gradients.append(found.detach().float())
        parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus hangs it on the parameter
        parameter.grad = None
    return gradients


def _losses(part: TrainedPart, chunk: CachedExamples, *, bf16: bool) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = part(chunk.hidden, chunk.mask)
    return per_example_loss(logits, chunk.labels)
