"""Profiles, manifests and a trainer for tests of the client that need no model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from client.durable import private_folder
from client.enrolment import keep_policy
from client.ledger import Ledger
from client.policy import Policy
from client.profile import Config, Profile, file_sha256, make_key
from client.rounds import OnStep
from client.turns import Turn
from client.wire import FrozenManifest

if TYPE_CHECKING:
    import torch

DECLARED = {"labels": ["ham", "spam"], "text_fields": ["subject", "body"], "label_field": "label"}
TERMS = {"dataset": "mailbox-3", "epsilon": 8.0, "delta": 1e-5, **DECLARED}
NAMES = {"base_model.model.classifier.weight": [2, 8], "base_model.model.layer.0.query.lora_B.weight": [8, 4]}
MAILS = [
    {"subject": "cheap offer", "body": "click here for money", "label": "spam"},
    {"subject": "meeting", "body": "the patch builds on the kernel list", "label": "ham"},
]


def manifest(**changed: Any) -> dict[str, Any]:
    """A frozen manifest; keywords replace members of it, dictionaries are merged."""
    frozen: dict[str, Any] = {
        "version": 1,
        "task": {
            "kind": "sequence_classification",
            "labels": ["ham", "spam"],
            "text_fields": ["subject", "body"],
            "label_field": "label",
            "max_tokens": 10,
            "pooling": "mean",
        },
        "base_model": {
            "name": "tiny",
            "locator": "package:tiny/model",
            "weights_sha256": "0" * 64,
            "architecture": "bert",
        },
        "lora": {
            "method": "ffa",
            "rank": 4,
            "alpha": 8.0,
            "target_modules": ["query"],
            "layers": [0],
            "modules_to_save": ["classifier"],
            "seed": 1,
        },
        "tensors": [{"name": name, "shape": shape, "trained": True} for name, shape in sorted(NAMES.items())],
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9, "local_steps": 2},
        "privacy": {
            "trust": "local",
            "unit": "example",
            "relation": "zero_out",
            "cohort": {"kind": "everyone"},
            "examples": {"kind": "poisson", "rate": 0.25},
            "clip_norm": 1.0,
            "noise_multiplier": 2.0,
            "epsilon": 8.0,
            "delta": 1e-5,
            "divisor": 8.0,
        },
        "aggregation": {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None},
        "rounds": 2,
        "quorum": {"min_updates": 2, "max_updates": 8},
        "round_deadline_s": 600.0,
    }
    for name, value in changed.items():
        frozen[name] = frozen.get(name, {}) | value if isinstance(value, dict) else value
    return frozen


def adapter() -> bytes:
    """The adapter of a round: zeros."""
    content: bytes = save({name: np.zeros(shape, dtype=np.float32) for name, shape in NAMES.items()})
    return content


def profile_in(folder: Path, *, server: str, client_id: str, **terms: Any) -> Profile:
    """An enrolled client with a data set of two mails; keywords are its policy's terms."""
    private_folder(folder)
    data = folder.parent / "mails.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(mail) + "\n" for mail in MAILS), encoding="utf-8")
    make_key(folder)
    home = folder.parent / "ledgers"
    Ledger(home, "mailbox-3").enrol_data(file_sha256(data))
    keep_policy(home, Policy.of(**(TERMS | terms)))
    config = Config(
        server=server,
        client_id=client_id,
        name="mailbox-3",
        region="eu-west-1",
        dataset="mailbox-3",
        data=str(data),
        data_sha256=file_sha256(data),
        home=str(home),
    )
    return Profile.create(folder, config)


class RandomTrainer:
    """Stands for training: the right tensors, different each time, as noise makes them."""

    def __init__(self) -> None:
        self.trained = 0

    def make_ready(self, profile: Profile, frozen: FrozenManifest) -> None:
        """Nothing to prepare."""

    def train(
        self, profile: Profile, frozen: FrozenManifest, adapter: bytes, *, turn: Turn, on_step: OnStep
    ) -> dict[str, torch.Tensor]:
        import torch  # noqa: PLC0415  (seconds to load; a process that only sends again needs none)

        self.trained += 1
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7)))
        for step in range(frozen.manifest.training.local_steps):
            on_step(step + 1, frozen.manifest.training.local_steps)
        return {
            one.name: torch.randn(one.shape, generator=generator)
            for one in frozen.manifest.tensors
            if one.trained
        }
