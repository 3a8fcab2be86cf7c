"""Scoring releases and local models: the base model's frozen layers run once over each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from demo.attack import CanaryGains
from demo.mails import Mail, Silo
from modelling.adapters import adapter_state, build_model, load_adapter
from modelling.base import locate_base_model
from modelling.cache import CachedExamples, build_cache
from modelling.evaluation import accuracy, auc, example_losses, logits_of
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart


@dataclass(frozen=True)
class Score:
    """How well an adapter does on the test mails."""

    accuracy: float
    auc: float


class Bench:
    """The test mails and every silo's canaries, ready to be scored under any adapter of the plan."""

    def __init__(self, manifest: dict[str, Any], silos: Sequence[Silo], test: Sequence[Mail]) -> None:
        torch.set_num_threads(2)
        self._spec = ModelSpec.from_manifest(manifest)
        self._folder = locate_base_model(self._spec.base.locator)
        model = build_model(self._spec, self._folder)
        self._test = self._cache(model, test)
        self._canaries = [
            (self._cache(model, silo.canaries_in), self._cache(model, silo.canaries_out)) for silo in silos
        ]
        self._start = adapter_state(model, trained_only=True)
        self._part = TrainedPart(model, self._spec)

    def _cache(self, model: Any, mails: Sequence[Mail]) -> CachedExamples:
        task = self._spec.task
        return build_cache(
            model,
            self._spec,
            self._folder,
            texts=["\n".join(mail[field] for field in task.text_fields) for mail in mails],
            labels=[task.labels.index(mail[task.label_field]) for mail in mails],
            bf16=bf16_in_frozen_part(),
        )

    def trainable_parameters(self) -> int:
        """How many numbers a client trains and sends."""
        return sum(tensor.numel() for tensor in self._start.values())

    def untrained(self) -> Score:
        """Score the adapter that round 1 starts from."""
        load_adapter(self._part.model, self._start)
        return self._score()

    def release(self, folder: Path) -> Score:
        """Score a release."""
        load_adapter(self._part.model, load_file(folder / "adapter_model.safetensors"))
        return self._score()

    def _score(self) -> Score:
        logits = logits_of(self._part, self._test)
        spam = self._spec.task.labels.index("spam")
        margin = logits[:, spam] - logits[:, 1 - spam]
        return Score(accuracy=accuracy(logits, self._test.labels), auc=auc(margin, self._test.labels == spam))

    def canary_gains(self, silo: int, given: Path, update: Path) -> CanaryGains:
        """How far one update of a silo lowers the losses on its canaries.

        Args:
            given: the release that the silo trained from.
            update: the silo's update file.
        """
        start, delta = load_file(given / "adapter_model.safetensors"), load_file(update)
        before = self._losses(silo, {name: start[name] for name in delta})
        after = self._losses(silo, {name: start[name] + change for name, change in delta.items()})
        return CanaryGains(inside=before[0] - after[0], outside=before[1] - after[1])

    def release_gains(self, silo: int, folder: Path) -> CanaryGains:
        """How much better a release fits the silo's canaries than the adapter that round 1 starts from."""
        before = self._losses(silo, self._start)
        after = self._losses(silo, load_file(folder / "adapter_model.safetensors"))
        return CanaryGains(inside=before[0] - after[0], outside=before[1] - after[1])

    def _losses(self, silo: int, adapter: dict[str, Tensor]) -> list[NDArray[np.float64]]:
        """Losses on the silo's canaries, those that were in and those that were not."""
        load_adapter(self._part.model, adapter)
        return [example_losses(self._part, mails).double().numpy() for mails in self._canaries[silo]]
