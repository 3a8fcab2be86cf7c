"""Two hostile mailboxes of eight on the demo's mails: what attacks cost under the default rule and the mean.

Trust `local`, epsilon 8, the demo's plan. The clients' trainer and the server's own aggregation
(workers/merging.py) run here without the services between them, so a row is about the rule alone: no client
is discounted or shut out. The noise comes from the operating system, as it does at a client; an accuracy is
the mean over the repeats, each with another pair of hostile mailboxes. `python -m benchmarks.robustness`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from app.runs.manifest import Manifest
from app.runs.robust import default_aggregation
from benchmarks.report import goal, report
from benchmarks.sealed_files import sealed_blobs
from client.trainer import train_round
from demo.mails import Mail, load_silos, load_test
from demo.plan import TASK, arms, manifest
from modelling.adapters import adapter_state, build_model, load_adapter
from modelling.base import locate_base_model
from modelling.cache import CachedExamples, build_cache
from modelling.evaluation import accuracy, logits_of
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart
from workers.handlers.price import price_of
from workers.layout import update_shapes
from workers.means import Mean
from workers.merging import Began, merged
from workers.tensors import write_tensors

EPSILON, SEED, CLIENTS, FAULTY = 8.0, 1, 8, 2
SCALE = 10.0
REPEATS, PROCESSES = 4, 2
PAIRS = ((0, 1), (4, 5), (2, 3), (6, 7))
"""Which mailboxes are hostile in each repeat."""
NOBODY = "none"
DEFAULT, MEAN = "default", "mean"

Change = dict[str, Tensor]


@dataclass(frozen=True)
class Now:
    """What a hostile mailbox knows in a round."""

    adapter: Change
    honestly: Callable[[], Change]
    """Its own update as the plan asks for it."""
    flipped: Callable[[], Change]
    """Its own update on mails with the other label."""
    target: Change
    """The adapter that it wants."""


def times(factor: float, change: Mapping[str, Tensor]) -> Change:
    """A multiple of an update."""
    return {name: factor * part for name, part in change.items()}


def replacement(now: Now) -> Change:
    """Boosted by n / f: the mean of all lands on the attacker's own adapter (Bagdasaryan et al. 2020)."""
    away = {name: part - now.adapter[name] for name, part in now.target.items()}
    return times(CLIENTS / FAULTY, away)


ATTACKS: dict[str, Callable[[Now], Change]] = {
    "sign flip": lambda now: times(-1.0, now.honestly()),
    "scaled": lambda now: times(SCALE, now.honestly()),
    "label flip": lambda now: now.flipped(),
    "model replacement": replacement,
}


@dataclass(frozen=True)
class Task:
    """One federated run."""

    attack: str
    rule: str
    repeat: int


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    accuracy: float
    odd_hostile: int
    """Updates of hostile mailboxes that were found odd, of all rounds together."""
    odd_honest: int


class Mailboxes:
    """Eight mailboxes and the test mails in this process."""

    def __init__(self, folder: Path) -> None:
        """Load the model; hidden states come from `folder`, or go there."""
        torch.set_num_threads(1)
        private, open_arm = arms(EPSILON)
        self.plan = manifest(private, clients=CLIENTS, seed=SEED)
        price = price_of(Manifest.model_validate(self.plan), orders=())
        self.plan["privacy"]["noise_multiplier"] = price["noise_multiplier"]
        self._open_plan = manifest(open_arm, clients=CLIENTS, seed=SEED)
        spec = ModelSpec.from_manifest(self.plan)
        self._model_folder = locate_base_model(spec.base.locator)
        model = build_model(spec, self._model_folder)
        self._boxes = [
            self._cache(model, spec, silo.training, folder / str(silo.number)) for silo in load_silos(SEED)
        ]
        self._test = self._cache(model, spec, load_test(), folder / "test")
        self.start = adapter_state(model, trained_only=True)
        self._part = TrainedPart(model, spec)

    def _cache(self, model: Any, spec: ModelSpec, mails: list[Mail], keep_in: Path) -> CachedExamples:
        return build_cache(
            model,
            spec,
            self._model_folder,
            texts=["\n".join(mail[name] for name in TASK["text_fields"]) for mail in mails],
            labels=[TASK["labels"].index(mail[TASK["label_field"]]) for mail in mails],
            keep_in=keep_in,
            bf16=bf16_in_frozen_part(),
        )

    def train(self, box: int, adapter: Change, *, flipped: bool = False, openly: bool = False) -> Change:
        """One round of one mailbox as the client trains it; `openly` without clipping and noise."""
        examples = self._boxes[box]
        if flipped:
            examples = examples.relabelled(1 - examples.labels)
        return train_round(self._part, examples, adapter, manifest=self._open_plan if openly else self.plan)

    def wrong(self, box: int) -> Change:
        """The adapter that the attacker wants: trained on flipped labels for as long as the run lasts."""
        adapter = dict(self.start)
        for _round in range(self.plan["rounds"]):
            adapter = added(adapter, self.train(box, adapter, flipped=True, openly=True))
        return adapter

    def score(self, adapter: Change) -> float:
        """Accuracy on the test mails."""
        load_adapter(self._part.model, adapter)
        return accuracy(logits_of(self._part, self._test), self._test.labels)


def added(adapter: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Change:
    """The adapter after a step."""
    return {name: part + change[name] for name, part in adapter.items()}


def aggregation(rule: str) -> dict[str, Any]:
    """The manifest's part about the rule: the server's default for so many mailboxes, or the plain mean."""
    if rule == DEFAULT:
        return default_aggregation(trust="local", min_updates=CLIENTS).model_dump(mode="json")
    return {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None}


def federate(boxes: Mailboxes, task: Task, folder: Path) -> Ended:
    """Run all rounds of one federation and score what comes out."""
    plan = Manifest.model_validate(boxes.plan | {"aggregation": aggregation(task.rule)})
    hostile = () if task.attack == NOBODY else PAIRS[task.repeat]
    target = boxes.wrong(hostile[0]) if task.attack == "model replacement" else {}
    blobs, adapter, odd = sealed_blobs(folder), dict(boxes.start), Counter[bool]()
    means: dict[UUID, Mean] = {}
    for number in range(1, plan.rounds + 1):
        updates = []
        for box in range(CLIENTS):
            if box in hostile:
                change = ATTACKS[task.attack](_knowing(boxes, box, adapter, target))
            else:
                change = boxes.train(box, adapter)
            updates.append((UUID(int=box), blobs.ref(write_tensors(blobs, change)[0])))
        outcome = merged(
            blobs.blobs,
            plan,
            updates,
            began=Began(
                round_id=UUID(int=number),
                number=number,
                adapter=blobs.ref(write_tensors(blobs, adapter)[0]),
                ranks={},
                means=means,
            ),
            min_updates=CLIENTS,
            worth={},
            lot=lambda client_id: client_id.bytes,
        )
        if outcome.change is None:
            raise SystemExit(f"a round of {task} ended without a result: {outcome.refusal}")
        for mean in outcome.means.values():
            blobs.blobs.keep(mean.file)
        means.update(outcome.means)
        adapter = added(adapter, _by_name(torch.from_numpy(outcome.change), plan))
        for one in outcome.judged:
            odd[one.client_id.int in hostile] += one.odd
    return Ended(boxes.score(adapter), odd_hostile=odd[True], odd_honest=odd[False])


def _knowing(boxes: Mailboxes, box: int, adapter: Change, target: Change) -> Now:
    return Now(
        adapter=adapter,
        honestly=lambda: boxes.train(box, adapter),
        flipped=lambda: boxes.train(box, adapter, flipped=True),
        target=target,
    )


def _by_name(flat: Tensor, plan: Manifest) -> Change:
    shapes = update_shapes(plan, number=1)
    parts = torch.split(flat, [torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


_here: list[Mailboxes] = []
"""A process's mailboxes, loaded once."""


def _load(folder: Path) -> None:
    _here.append(Mailboxes(folder))


def _one(task: Task) -> Ended:
    with tempfile.TemporaryDirectory() as folder:
        return federate(_here[0], task, Path(folder))


def run_all(tasks: list[Task]) -> Iterator[tuple[Task, Ended]]:
    """Run federations in two processes; hidden states are computed once."""
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, spawning, initializer=_load, initargs=(Path(folder),)) as first:
            first.submit(int).result()
        with ProcessPoolExecutor(PROCESSES, spawning, initializer=_load, initargs=(Path(folder),)) as pool:
            yield from zip(tasks, pool.map(_one, tasks), strict=True)


def measure(repeats: int) -> None:
    """Run every attack under both rules, and report."""
    tasks = [
        Task(attack, rule, repeat)
        for repeat, attack, rule in itertools.product(range(repeats), (NOBODY, *ATTACKS), (DEFAULT, MEAN))
    ]
    ended: dict[tuple[str, str], list[Ended]] = {}
    for task, end in run_all(tasks):
        print(f"{task}: {end}", flush=True)
        ended.setdefault((task.attack, task.rule), []).append(end)
    score = {key: statistics.mean(one.accuracy for one in ends) for key, ends in ended.items()}
    honest = score[NOBODY, MEAN]
    rows = [_row(attack, score, ended) for attack in (NOBODY, *ATTACKS)]
    losses = [100.0 * (honest - score[attack, DEFAULT]) for attack in ATTACKS]
    broken = [100.0 * (honest - score[attack, MEAN]) for attack in ATTACKS]
    report(
        "robustness",
        rows,
        [
            goal("worst_loss_points_default_rule", round(max(losses), 2), at_most=3.0),
            goal("attacks_with_the_mean_10_points_worse", sum(loss >= 10.0 for loss in broken), at_least=2),
        ],
    )


def _row(
    attack: str, score: Mapping[tuple[str, str], float], ended: Mapping[tuple[str, str], list[Ended]]
) -> dict[str, Any]:
    ends = ended[attack, DEFAULT]
    return {
        "attack": attack,
        "honest": round(score[NOBODY, MEAN], 4),
        "default": round(score[attack, DEFAULT], 4),
        "mean": round(score[attack, MEAN], 4),
        "default_runs": [round(one.accuracy, 4) for one in ends],
        "mean_runs": [round(one.accuracy, 4) for one in ended[attack, MEAN]],
        "odd_hostile": sum(one.odd_hostile for one in ends),
        "odd_honest": sum(one.odd_honest for one in ends),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS, choices=range(1, len(PAIRS) + 1))
    measure(parser.parse_args().repeats)
