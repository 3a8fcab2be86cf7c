"""What the frozen lower layers make of each text, computed once and used in every step.

The hidden states are as private as the texts: they stay in memory, or in a file that only its owner can
read inside the client's own folder.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from modelling.adapters import layers_of
from modelling.encoding import Encoded, encode
from modelling.spec import ModelSpec

_BATCH = 64


@dataclass(frozen=True)
class CachedExamples:
    """Texts as the trained part takes them, with their labels."""

    hidden: Tensor
    """float32 or bfloat16, shape (n, tokens, width)."""
    mask: Tensor
    """int64, shape (n, tokens)."""
    labels: Tensor
    """int64, shape (n,): positions in the manifest's labels."""
    persons: Tensor | None = None
    """int64, shape (n,): number of each text's person, counted from 0; None where nobody counts them."""

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def take(self, positions: Tensor) -> "CachedExamples":
        """Return the examples at these positions, hidden states in float32."""
        return CachedExamples(
            hidden=self.hidden[positions].float(),
            mask=self.mask[positions],
            labels=self.labels[positions],
            persons=None if self.persons is None else self.persons[positions],
        )

    @property
    def person_count(self) -> int:
        """The number of persons.

        Raises:
            ValueError: the examples were read without them.
        """
        if self.persons is None:
            raise ValueError("these examples do not say whose they are")
        return int(self.persons.max()) + 1 if len(self) else 0

    def of_persons(self, chosen: Tensor) -> "CachedExamples":
        """Return all examples of the chosen persons, who are numbered anew in the order chosen.

        Args:
            chosen: int64, shape (k,): different persons.

        Raises:
            ValueError: the examples were read without persons.
        """
        places = torch.full((self.person_count,), -1, dtype=torch.int64)
        places[chosen] = torch.arange(len(chosen))
        persons = places[self.persons]
        positions = (persons >= 0).nonzero().squeeze(1)
        return replace(self.take(positions), persons=persons[positions])

    def batches(self, size: int) -> Iterator["CachedExamples"]:
        """Return all examples in order, `size` at a time; none of the parts is empty."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def relabelled(self, labels: Tensor) -> "CachedExamples":
        """Return the same texts with other labels."""
        return replace(self, labels=labels)


class _LayerReached(Exception):
    """Carries the hidden states out of a forward pass that has gone far enough."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def build_cache(
    model: PeftModel,
    spec: ModelSpec,
    folder: Path,
    *,
    texts: Sequence[str],
    labels: Sequence[int],
    persons: Sequence[int] | None = None,
    keep_in: Path | None = None,
    bf16: bool = False,
    on_batch: Callable[[int, int], None] = lambda done, whole: None,
) -> CachedExamples:
    """Run the frozen layers over all texts.

    Args:
        model: the whole model from `build_model`, not yet taken over by `TrainedPart`.
        folder: the base model's folder, for its tokenizer.
        texts: what is classified.
        labels: one position in the manifest's labels per text.
        persons: one number of a person per text, without gaps from 0, where persons count.
        keep_in: a folder of the client's own where hidden states are kept for the next round (mode 0600).
        bf16: compute and keep the hidden states in bfloat16.
        on_batch: called with texts done and the number of all.
    """
    encoded = encode(spec, folder, texts)
    numbers = torch.tensor(list(labels), dtype=torch.int64)
    kept = _kept_file(spec, encoded, keep_in=keep_in, bf16=bf16)
    hidden = None if kept is None else _read_kept(kept, encoded)
    if hidden is None:
        hidden = _hidden_states(model, spec, encoded, bf16=bf16, on_batch=on_batch)
        if kept is not None:
            _write_kept(kept, hidden)
    owners = None if persons is None else torch.tensor(list(persons), dtype=torch.int64)
    return CachedExamples(hidden=hidden, mask=encoded.mask, labels=numbers, persons=owners)


def _hidden_states(
    model: PeftModel, spec: ModelSpec, encoded: Encoded, *, bf16: bool, on_batch: Callable[[int, int], None]
) -> Tensor:
    whole = encoded.input_ids.shape[0]
    dtype = torch.bfloat16 if bf16 else torch.float32
    batches: list[Tensor] = []
    first = layers_of(spec, model.get_base_model())[spec.first_trained_layer]
    handle = first.register_forward_pre_hook(_stop_before, with_kwargs=True)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for start in range(0, whole, _BATCH):
                batches.append(_one_batch(model, encoded, start).to(dtype))
                on_batch(min(start + _BATCH, whole), whole)
    finally:
        handle.remove()
    if not batches:
        width = int(model.get_base_model().config.hidden_size)
        return torch.zeros((0, spec.task.max_tokens, width), dtype=dtype)
    return torch.cat(batches).clone()  # no longer an inference tensor: training may use it


def _one_batch(model: PeftModel, encoded: Encoded, start: int) -> Tensor:
    chosen = slice(start, start + _BATCH)
    try:
        model(input_ids=encoded.input_ids[chosen], attention_mask=encoded.mask[chosen])
    except _LayerReached as reached:
        return reached.hidden
    raise RuntimeError("the forward pass never reached the first trained layer")


def _stop_before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _LayerReached(inputs[0] if inputs else named["hidden_states"])


def _kept_file(spec: ModelSpec, encoded: Encoded, *, keep_in: Path | None, bf16: bool) -> Path | None:
    """Name the file by all that its content depends on; labels do not enter it."""
    if keep_in is None:
        return None
    digest = hashlib.sha256()
    digest.update(f"{spec.base.weights_sha256} {spec.first_trained_layer} {bf16}\n".encode())
    for tensor in (encoded.input_ids, encoded.mask):
        digest.update(tensor.numpy().tobytes())
    return keep_in / f"hidden-{digest.hexdigest()[:32]}.safetensors"


def _read_kept(path: Path, encoded: Encoded) -> Tensor | None:
    """Return what was kept, or None when there is none that can be read."""
    try:
        hidden: Tensor = load_file(path)["hidden"]
    except (OSError, KeyError, SafetensorError):
        return None
    return hidden if hidden.shape[:2] == encoded.mask.shape else None


def _write_kept(path: Path, hidden: Tensor) -> None:
    """Keep these hidden states and drop older ones: a text that was taken out must not live on in them.

    They only save time: a disk that takes none of them keeps nobody from training.
    """
    partial = path.with_suffix(".part")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(save({"hidden": hidden.contiguous()}))
        partial.replace(path)
    for other in path.parent.glob("hidden-*"):
        if other != path:
            other.unlink(missing_ok=True)
