"""The demo's private arm, without its servers: the same mails, plan, sampler, noise and mean.

`make demo` measures the whole schedule over HTTP; its figures are in README.md. Here three rounds on the
beginning of each mail have to do, and noise is drawn anew each time, so the bounds lie several standard
deviations below what was measured (.909 and .945).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.trainer import train_round
from demo.mails import Mail, load_silos, load_test
from demo.plan import arms, manifest
from modelling.adapters import adapter_state, build_model, load_adapter
from modelling.base import locate_base_model
from modelling.cache import CachedExamples, build_cache
from modelling.evaluation import accuracy, auc, logits_of
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart

NOISE_MULTIPLIER = 0.9345
ROUNDS, MAX_TOKENS = 3, 32


def cached(model: Any, spec: ModelSpec, folder: Path, mails: list[Mail]) -> CachedExamples:
    return build_cache(
        model,
        spec,
        folder,
        texts=["\n".join(mail[field] for field in spec.task.text_fields) for mail in mails],
        labels=[spec.task.labels.index(mail["label"]) for mail in mails],
        bf16=bf16_in_frozen_part(),
    )


def one_round(part: TrainedPart, silos: list[CachedExamples], start: dict[str, Tensor], plan: Any) -> Any:
    changes = [train_round(part, silo, start, manifest=plan) for silo in silos]
    return {
        name: start[name] + torch.stack([change[name] for change in changes]).mean(dim=0) for name in start
    }


@pytest.mark.system
@pytest.mark.timeout(900)
def test_eight_mailboxes_learn_a_spam_filter_in_three_private_rounds() -> None:
    torch.set_num_threads(1)
    plan = manifest(arms(8.0)[0], clients=8, seed=1)
    plan["privacy"]["noise_multiplier"] = NOISE_MULTIPLIER
    plan["task"]["max_tokens"] = MAX_TOKENS
    spec = ModelSpec.from_manifest(plan)
    folder = locate_base_model(spec.base.locator)
    model = build_model(spec, folder)
    silos = [cached(model, spec, folder, silo.training) for silo in load_silos(seed=1)]
    test = cached(model, spec, folder, load_test())
    adapter = adapter_state(model, trained_only=True)
    part = TrainedPart(model, spec)
    for _number in range(ROUNDS):
        adapter = one_round(part, silos, adapter, plan)
    load_adapter(part.model, adapter)
    logits = logits_of(part, test)
    spam = spec.task.labels.index("spam")
    assert accuracy(logits, test.labels) > 0.85
    assert auc(logits[:, spam] - logits[:, 1 - spam], test.labels == spam) > 0.91
