"""Texts to token numbers, the same for training, evaluation and whoever loads a release."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from modelling.spec import ModelSpec


@dataclass(frozen=True)
class Encoded:
    """A batch of texts, all cut or padded to one length.

    Never to the longest text of a batch: a shape may not depend on what a text says.
    """

    input_ids: Tensor
    """int64, shape (n, max_tokens)."""
    mask: Tensor
    """int64, shape (n, max_tokens); 1 where there is a token, 0 where there is padding."""


def encode(spec: ModelSpec, folder: Path, texts: Sequence[str]) -> Encoded:
    """Tokenize texts with the base model's own tokenizer, special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not texts:
        empty = torch.zeros((0, spec.task.max_tokens), dtype=torch.int64)
        return Encoded(input_ids=empty, mask=empty.clone())
    batch = tokenizer(
        list(texts),
        truncation=True,
        max_length=spec.task.max_tokens,
        padding="max_length",
        return_tensors="pt",
    )
    return Encoded(input_ids=batch["input_ids"], mask=batch["attention_mask"])
