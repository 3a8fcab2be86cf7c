"""Every LoRA method from plan to release, through the real server and real clients: two rounds each.

Clients run in this process; all they say goes over HTTP.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from cli.access import open_session
from cli.embedded.stack import running_stack
from client.enrolment import Wish, enrol
from client.policy import Policy
from client.profile import Profile
from client.session import Session
from engines.lora.states import VARIATE
from modelling.adapters import adapter_tensors
from modelling.spec import ModelSpec
from tests.client_folders import DECLARED
from tests.serving import serve
from tests.system.test_client_leaks import invite
from tests.unit.tiny_model import manifest_of, texts_and_labels, write_tiny_bert

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
RANK = 4
MEMORY_BYTES = (9_000, 15_000, None)
"""Of the three clients: under flexlora rank r of the tiny model takes 44 (128 r + 66) bytes."""
SENT = {
    "ffa": [{"lora_B"}, {"lora_B"}],
    "fedsb": [{"lora_B.core"}, {"lora_B.core"}],
    "rolora": [{"lora_B"}, {"lora_A"}],
    "flexlora": [{"lora_A", "lora_B"}] * 2,
    "fedask": [{"lora_B"}, {"lora_A"}],
    "flora": [{"lora_A", "lora_B"}] * 2,
    "fedex": [{"lora_A", "lora_B"}] * 2,
    "fedsa": [{"lora_A"}, {"lora_A"}],
    "fedit": [{"lora_A", "lora_B"}] * 2,
}
"""Factors in the update of each round, beside the head; under `fedask` sketches in their place, and no head
in the first of two rounds."""
_VALUE = "bert.encoder.layer.2.attention.self.value"
_OWN = {"rank_pattern": {_VALUE: 2}, "alpha_pattern": {_VALUE: 3.0}, "rank_stabilized": True}
BY_MODULE = {"fedex": (_OWN, {2, RANK}), "fedask": (_OWN, {2 * 3, RANK * 3})}
"""Runs of which one module has a rank and an alpha of its own, and how many rows there are for A."""


@dataclass
class House:
    """A running stack with enrolled clients and its administrator."""

    admin: Session
    profiles: list[Profile]
    base: Path

    def plan(self, method: str, **lora: Any) -> dict[str, Any]:
        """Two rounds of two private steps each, so noisy that they cost next to nothing."""
        plan = manifest_of(self.base, method=method, rank=RANK, **lora)
        plan["privacy"] |= {"noise_multiplier": 20.0, "epsilon": None, "delta": 1e-7}
        plan["training"]["local_steps"] = 2
        plan["tensors"] = adapter_tensors(ModelSpec.from_manifest(plan), self.base)
        plan["aggregation"] = {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None}
        plan["rounds"], plan["round_deadline_s"] = 2, 120.0
        clients = len(self.profiles)
        return plan | {"quorum": {"min_updates": clients, "max_updates": clients}}

    def run(self, plan: dict[str, Any]) -> str:
        """Plan, price, start and serve a run to its end with all clients; returns its id."""
        body = {"manifest": plan, "client_ids": [one.config.client_id for one in self.profiles]}
        run = self.admin.post("/v1/runs", body).json("run")
        path = f"/v1/runs/{run['id']}"
        run = self.admin.post(f"{path}/price", None).json("run")
        while run["state"] == "pricing":
            query = {"wait": "20", "since": str(run["version"])}
            run = self.admin.get(path, query=query, wait_s=20.0).json("run")
        assert run["state"] == "priced", run["reason"]
        self.admin.post(f"{path}/start", None)
        serve(self.profiles, run["id"])
        assert self.admin.get(path).json("run")["state"] == "finished"
        return str(run["id"])

    def update(self, client: int, run_id: str, number: int) -> dict[str, torch.Tensor]:
        """What a client sent."""
        return load_file(self.profiles[client].round_folder(run_id, number) / "update.safetensors")

    def released(self, run_id: str, to: Path) -> PeftModel:
        """A run's last release, loaded by plain transformers and peft."""
        items = self.admin.get("/v1/releases", query={"run_id": run_id}).json("releases")["items"]
        last = max(items, key=lambda one: one["number"])
        assert (len(items), last["number"]) == (2, 2)
        path = f"/v1/releases/{last['id']}"
        adapter = self.admin.download(f"{path}/adapter", limit_bytes=1 << 24).content
        (to / "adapter_model.safetensors").write_bytes(adapter)
        (to / "adapter_config.json").write_bytes(self.admin.get(f"{path}/config").content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft, about transformers
            model = AutoModelForTokenClassification.from_pretrained(
                self.base, num_labels=2, use_safetensors=True
            )
            return PeftModel.from_pretrained(model, to)


def enrolled(root: Path, admin_file: Path, url: str, base: Path, *, number: int) -> Profile:
    """A client with mails of its own, which declares how much memory it has."""
    data = root / f"mails-{number}.jsonl"
    texts, labels = texts_and_labels(24, seed=number)
    lines = [
        {"subject": text, "body": "", "label": DECLARED["labels"][label]}
        for text, label in zip(texts, labels, strict=True)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = Policy.of(
        dataset=f"mailbox-{number}",
        epsilon=8.0,
        delta=1e-5,
        base_model_folders={"tiny": str(base)},
        **DECLARED,
    )
    return enrol(
        Wish(
            folder=root / f"client-{number}",
            server=url,
            token=invite(admin_file, url),
            name=f"mailbox-{number}",
            data=data,
            policy=policy,
            home=root / "ledgers",
            memory_bytes=MEMORY_BYTES[number],
        )
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("methods")
    base = write_tiny_bert(root / "base")
    with running_stack(root / "stack", environment={"DPFL_TRUSTS": "local"}) as stack:
        profiles = [
            enrolled(root, stack.admin_file, stack.url, base, number=number)
            for number in range(len(MEMORY_BYTES))
        ]
        with open_session(stack.url, stack.admin_file) as admin:
            yield House(admin, profiles, base)


def factors_in(update: dict[str, torch.Tensor]) -> set[str]:
    names = {name.partition(".lora_")[2].removesuffix(".weight") for name in update if ".lora_" in name}
    return {f"lora_{name}" for name in names}


@pytest.mark.parametrize("method", SENT)
def test_a_method_is_trained_sent_averaged_and_released(house: House, tmp_path: Path, method: str) -> None:
    run_id = house.run(house.plan(method, **BY_MODULE.get(method, ({}, set()))[0]))
    for number in (1, 2):
        update = house.update(0, run_id, number)
        assert factors_in(update) == SENT[method][number - 1]
        heads = 0 if (method, number) == ("fedask", 1) else 2
        assert len(update) == 2 * len(SENT[method][number - 1]) + heads
        widths = {one.shape[0] for name, one in update.items() if "lora_A" in name}
        assert not widths or method not in BY_MODULE or widths == BY_MODULE[method][1]
        # Noise is on exactly what is sent: no number of it stays where it was.
        assert all(bool(tensor.all()) for tensor in update.values())
    b_factors = [one for name, one in house.released(run_id, tmp_path).named_parameters() if "lora_B" in name]
    assert len(b_factors) == 2
    assert all(bool(one.any()) == (method != "fedsa") for one in b_factors)


def test_fedsa_keeps_b_at_the_client_and_goes_on_from_it(house: House) -> None:
    run_id = house.run(house.plan("fedsa"))
    kept = [
        [load_file(one.round_folder(run_id, number) / "kept.safetensors") for number in (1, 2)]
        for one in house.profiles
    ]
    for first, second in kept:
        assert {name.partition(".lora_")[2] for name in first} == {"B.weight"}
        assert all(bool(tensor.all()) for tensor in first.values())
        moved = [float((second[name] - first[name]).norm() / first[name].norm()) for name in first]
        assert 0.1 < max(moved) < 10.0
    assert not torch.equal(*(one[1][name] for one in kept[:2] for name in sorted(one[1])[:1]))


def test_with_control_variates_the_servers_is_the_mean_of_what_the_clients_keep(house: House) -> None:
    plan = house.plan("ffa")
    plan["training"] |= {"momentum": 0.0, "control_variates": "scaffold"}
    run_id = house.run(plan)
    kept = [load_file(one.round_folder(run_id, 1) / "kept.safetensors") for one in house.profiles]
    second = load_file(house.profiles[0].round_folder(run_id, 2) / "adapter.safetensors")
    shared = {name: one for name, one in second.items() if name.endswith(VARIATE)}
    assert {name.removesuffix(VARIATE) for name in shared} == set(kept[0])
    for name, one in shared.items():
        mean = torch.stack([own[name.removesuffix(VARIATE)] for own in kept]).mean(dim=0)
        assert bool(one.all())
        assert torch.allclose(one, mean, atol=1e-4 * float(one.abs().max()))
    items = house.admin.get("/v1/releases", query={"run_id": run_id}).json("releases")["items"]
    assert len(items) == 2


@pytest.mark.parametrize(("method", "wire_dtype"), [("ffa", "int8"), ("flexlora", "bfloat16")])
def test_clients_train_at_the_rank_that_fits_them_and_one_release_comes_out(
    house: House, tmp_path: Path, method: str, wire_dtype: str
) -> None:
    plan = house.plan(method, ranks=[1, 2, RANK])
    plan["aggregation"]["wire_dtype"] = wire_dtype
    run_id = house.run(plan)
    ranks = []
    for client in range(len(MEMORY_BYTES)):
        update = house.update(client, run_id, 2)
        sent = {name: one for name, one in update.items() if one.dtype == getattr(torch, wire_dtype)}
        ranks.append({tensor.shape[1] for name, tensor in sent.items() if ".lora_B." in name})
    assert ranks == [{1}, {2}, {RANK}]
    model = house.released(run_id, tmp_path)
    shapes = {tuple(one.shape) for name, one in model.named_parameters() if "lora_B" in name}
    assert shapes == {(32, RANK)}
