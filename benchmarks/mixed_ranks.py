"""Clients of ranks 4, 8 and 16 train one adapter on the demo's mails: three ways to average what they send.

`flexlora` is the product's: the mean of the clients' products, decomposed, and each client's own cut of it.
`zero_padding` fills factors up with zeros and averages them (HetLoRA's form), once with every client's scale
kept and once with one alpha for all ranks, as it is usually found. `plain` is the mean of factors as they
are, which exists at one rank only: the smallest. Without noise, so that the averages alone are compared; few
rounds of many steps, so that clients move apart; a rate at which every way is stable.
`python -m benchmarks.mixed_ranks`; one thread, about five minutes of a processor.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import goal, report
from client.trainer import train_round
from client.turns import Turn, at_rank, manifest_at
from demo.mails import SILOS, Mail, load_test, mails_of
from demo.plan import LORA, arms, manifest
from engines.lora.adapter import initial_adapter
from engines.lora.cohort import Weighted
from engines.lora.factors import pairs_of
from engines.lora.moves import by_decomposition
from engines.lora.scaling import LoraScale
from engines.lora.seeding import seeded_a
from engines.lora.target import target_of
from modelling.adapters import adapter_tensors, build_model, load_adapter
from modelling.base import locate_base_model
from modelling.cache import CachedExamples, build_cache
from modelling.evaluation import accuracy, auc, logits_of
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart

RANKS = (4, 4, 4, 8, 8, 8, 16, 16)
"""Of the eight mailboxes."""
RUN_RANK, ROUNDS, LOCAL_STEPS, EXPECTED_BATCH, TOKENS = max(RANKS), 4, 24, 16, 32
SCALE, LEARNING_RATE = 1.0, 0.1
"""alpha / rank of every client, save where all have one alpha: there it is that of the middle rank."""
Adapter = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """How a round's adapters become one."""

    name: str
    ranks: Sequence[int]
    average: Callable[[Adapter, Sequence[Adapter], Sequence[int], float], Adapter]
    one_alpha: bool = False
    """Every client has the run's alpha, whatever its rank: the usual form."""


def by_products(start: Adapter, trained: Sequence[Adapter], ranks: Sequence[int], scale: float) -> Adapter:
    """The product's way; see `workers.products`."""
    run, averaged = LoraScale(RUN_RANK, scale * RUN_RANK), mean_of(start, trained)
    share = 1.0 / len(trained)
    pairs = [pairs_of(one, LoraScale(rank, scale * rank)) for one, rank in zip(trained, ranks, strict=True)]
    for module in pairs[0]:
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        columns = start[a].shape[1]
        target = target_of(
            [Weighted(share, one[module]) for one in pairs], width=min(start[b].shape[0], columns)
        )
        spare = seeded_a(1, a, (RUN_RANK, columns)).double()
        pair = by_decomposition(target, scale=run, spare_a=spare).pair
        averaged[a], averaged[b] = pair.a.float(), pair.b.float()
    return averaged


def by_padding(start: Adapter, trained: Sequence[Adapter], ranks: Sequence[int], scale: float) -> Adapter:
    """The mean of factors, with zeros where a client has none."""
    return mean_of(start, trained)


def mean_of(start: Adapter, trained: Sequence[Adapter]) -> Adapter:
    """The mean by tensor; smaller ones are filled up with zeros."""
    means = {}
    for name, like in start.items():
        total = torch.zeros(like.shape, dtype=torch.float64)
        for one in trained:
            corner = tuple(slice(0, length) for length in one[name].shape)
            total[corner] += one[name].double()
        means[name] = (total / len(trained)).float()
    return means


WAYS = (
    Way("flexlora", RANKS, by_products),
    Way("zero_padding", RANKS, by_padding),
    Way("zero_padding, one alpha", RANKS, by_padding, one_alpha=True),
    Way("plain", (min(RANKS),) * len(RANKS), by_padding),
)


class Mailboxes:
    """The demo's mails behind the frozen layers, and a trained part for every rank."""

    def __init__(self, folder: Path | None) -> None:
        """Put all mails through the frozen layers, or read from `folder` what an earlier run kept there."""
        spec = ModelSpec.from_manifest(plan_of(seed=1))
        self._folder, self._labels = locate_base_model(spec.base.locator), spec.task.labels
        model = build_model(spec, self._folder)
        self.silos = [
            self._cached(model, spec, mails_of(number), keep_in=folder and folder / str(number))
            for number in range(SILOS)
        ]
        self._test = self._cached(model, spec, load_test(), keep_in=folder and folder / "test")
        self._parts: dict[tuple[int, float], TrainedPart] = {}

    def _cached(
        self, model: Any, spec: ModelSpec, mails: Sequence[Mail], *, keep_in: Path | None
    ) -> CachedExamples:
        return build_cache(
            model,
            spec,
            self._folder,
            texts=["\n".join(mail[field] for field in spec.task.text_fields) for mail in mails],
            labels=[spec.task.labels.index(mail["label"]) for mail in mails],
            keep_in=keep_in,
            bf16=bf16_in_frozen_part(),
        )

    def part(self, plan: Mapping[str, Any]) -> TrainedPart:
        """The model at a plan's rank and scale."""
        key = (plan["lora"]["rank"], plan["lora"]["alpha"])
        if key not in self._parts:
            spec = ModelSpec.from_manifest(plan)
            self._parts[key] = TrainedPart(build_model(spec, self._folder), spec)
        return self._parts[key]

    def score(self, adapter: Adapter, plan: Mapping[str, Any]) -> tuple[float, float]:
        """Accuracy and AUC on the mails that nobody trains on."""
        part = self.part(plan)
        load_adapter(part.model, adapter)
        logits, spam = logits_of(part, self._test), self._labels.index("spam")
        margin = logits[:, spam] - logits[:, 1 - spam]
        return accuracy(logits, self._test.labels), auc(margin, self._test.labels == spam)


def trained_by(way: Way, mails: Mailboxes, *, seed: int) -> tuple[float, float]:
    """Train all rounds in one way; returns accuracy and AUC."""
    run = plan_of(seed=seed)
    if way.one_alpha:
        run["lora"]["alpha"] = SCALE * sorted(way.ranks)[len(way.ranks) // 2]
    adapter = initial_adapter(run["tensors"], seed)
    for number in range(1, ROUNDS + 1):
        sent = []
        for silo, rank in zip(mails.silos, way.ranks, strict=True):
            plan = dict(manifest_at(run, rank))
            if way.one_alpha:
                plan["lora"] = plan["lora"] | {"alpha": run["lora"]["alpha"]}
            start = at_rank(adapter, rank)
            change = train_round(
                mails.part(plan), silo, start, manifest=plan, turn=Turn(number, rank), order_seed=seed
            )
            sent.append({name: start[name] + change[name] for name in start})
        adapter = way.average(adapter, sent, way.ranks, SCALE)
    return mails.score(adapter, run)


def plan_of(*, seed: int) -> dict[str, Any]:
    """The demo's arm without privacy, both factors trained at the run's rank."""
    plan = manifest(arms(8.0)[1], clients=len(RANKS), seed=seed)
    plan["lora"] = LORA | {"seed": seed, "method": "fedit", "rank": RUN_RANK, "alpha": SCALE * RUN_RANK}
    plan["task"] = plan["task"] | {"max_tokens": TOKENS}
    plan["training"] |= {"learning_rate": LEARNING_RATE, "local_steps": LOCAL_STEPS}
    plan["privacy"] |= {
        "divisor": EXPECTED_BATCH,
        "examples": {"kind": "poisson", "rate": EXPECTED_BATCH / 520},
    }
    plan["tensors"] = adapter_tensors(
        ModelSpec.from_manifest(plan), locate_base_model(plan["base_model"]["locator"])
    )
    return plan


def measure(seeds: Sequence[int], folder: Path | None = None) -> None:
    """Run every way with every seed, and report the medians."""
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    mails = Mailboxes(folder)
    for seed in seeds:
        for way in WAYS:
            found[way.name].append(trained_by(way, mails, seed=seed))
            print(seed, way.name, found[way.name][-1], flush=True)
    medians = {name: statistics.median(one[1] for one in scores) for name, scores in found.items()}
    rows = [
        {
            "way": name,
            "auc": round(medians[name], 4),
            "accuracy": round(statistics.median(one[0] for one in scores), 4),
            "seeds": len(seeds),
        }
        for name, scores in found.items()
    ]
    goals = [
        goal(
            f"flexlora_over_{name.replace(', ', '_').replace(' ', '_')}_auc_points",
            100.0 * (medians["flexlora"] - value),
            at_least=0.0,
        )
        for name, value in medians.items()
        if name != "flexlora"
    ]
    report("mixed_ranks", rows, goals)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--keep", type=Path, help="folder for what the frozen layers make of the mails")
    given = arguments.parse_args()
    measure(range(1, given.seeds + 1), given.keep)
