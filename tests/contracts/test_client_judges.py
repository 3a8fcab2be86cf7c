"""What the server's checks take under trust `local`, a client whose policy allows it takes as well."""

import itertools
from copy import deepcopy
from typing import Any

import pytest

from app.core.canonical import canonical_bytes
from app.core.errors import Invalid
from app.runs.manifest import EXAMPLE, Manifest
from app.runs.plan import check_plan
from client.policy import Policy, judge
from client.wire import FrozenManifest
from modelling.adapters import adapter_tensors
from modelling.base import locate_base_model, weights_digest
from modelling.spec import ModelSpec
from tests.client_folders import DECLARED, TERMS

CLIENTS = 8
PERSON = {"id_field": "sender", "records_cap": 4, "silos": 2}
DATA = DECLARED | {"person_field": PERSON["id_field"], "person_records": PERSON["records_cap"]}
WILLING = Policy.of(dataset="mails", epsilon=1000.0, delta=0.5, trusts=["local"], smallest_cohort=1, **DATA)
CLIP = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 10.0}
CHOICES: dict[str, list[Any]] = {
    "unit": ["example", "person", "client"],
    "relation": ["zero_out", "add_remove", "replace_one"],
    "cohort": [
        {"kind": "everyone"},
        {"kind": "poisson", "rate": 0.5, "cap": CLIENTS, "n_max": CLIENTS},
        {"kind": "optimized", "participation_cap": 4, "separation": 1},
    ],
    "examples": [{"kind": "poisson", "rate": 0.1231}, {"kind": "all"}],
    "person": [None, PERSON],
    "adaptive_clip": [None, CLIP],
    "clip_norm": [None, 1.0],
}
AGGREGATIONS = [
    {"mode": mode, "rule": rule, "weights": weights, "clip_norm": clip_norm}
    for mode, rule, weights, clip_norm in itertools.product(
        ("plain", "secagg"), ("mean", "median"), ("uniform", "sizes"), (None, 2.0)
    )
]


def accepted(document: dict[str, Any]) -> bool:
    """Whether the server lets a draft of this plan be made, under its default of trusts."""
    try:
        manifest = Manifest.model_validate(document)
        check_plan(manifest, clients=CLIENTS, trusts=("local",), max_update_bytes=512 * 1024**2)
    except Invalid:
        return False
    return True


def started(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest as it is frozen: with the noise and the epsilon that the price found."""
    frozen = Manifest.model_validate(document).as_json()
    found = {"noise_multiplier": 1.0, "epsilon": 8.0}
    named = {name: value for name, value in frozen["privacy"].items() if value is not None}
    frozen["privacy"] = frozen["privacy"] | found | named
    return frozen


def plans() -> list[dict[str, Any]]:
    made = []
    for values in itertools.product(*CHOICES.values()):
        made.append(
            deepcopy(EXAMPLE) | {"privacy": EXAMPLE["privacy"] | dict(zip(CHOICES, values, strict=True))}
        )
    for aggregation in AGGREGATIONS:
        made.append(deepcopy(EXAMPLE) | {"aggregation": aggregation})
    for least, most in ((0, 8), (1, 1), (2, 8), (8, 8), (9, 9)):
        made.append(deepcopy(EXAMPLE) | {"quorum": {"min_updates": least, "max_updates": most}})
    for optimizer in ("fedavgm", "fedexp"):
        step = {"aggregation": EXAMPLE["aggregation"] | {"server_optimizer": {"kind": optimizer}}}
        made.append(deepcopy(EXAMPLE) | step)
    buffers = {"buffered": {"participations": 4, "staleness": 2}}
    made.append(deepcopy(EXAMPLE) | buffers | {"quorum": {"min_updates": 4, "max_updates": 4}})
    for name, value in itertools.product(("noise_multiplier", "epsilon", "delta"), (None, 0.05)):
        made.append(deepcopy(EXAMPLE) | {"privacy": EXAMPLE["privacy"] | {name: value}})
    return made


def test_what_the_server_takes_a_willing_client_takes() -> None:
    taken = [document for document in plans() if accepted(document)]
    assert len(taken) >= 10
    assert {document["privacy"]["unit"] for document in taken} == {"example", "person"}
    for document in taken:
        frozen = FrozenManifest(canonical_bytes(started(document)))
        judge(frozen.manifest, WILLING.model_copy(update={"units": [document["privacy"]["unit"]]}))


@pytest.mark.parametrize("smallest_cohort", [1, 2])
def test_the_documented_example_is_taken_by_a_policy_as_it_is_made(smallest_cohort: int) -> None:
    assert accepted(EXAMPLE)
    usual = Policy.of(**(TERMS | {"smallest_cohort": smallest_cohort}))
    judge(FrozenManifest(canonical_bytes(started(EXAMPLE))).manifest, usual)


def test_the_documented_example_lists_every_tensor_of_its_adapter() -> None:
    folder = locate_base_model(EXAMPLE["base_model"]["locator"])
    assert EXAMPLE["tensors"] == adapter_tensors(ModelSpec.from_manifest(EXAMPLE), folder)
    assert EXAMPLE["base_model"]["weights_sha256"] == weights_digest(folder)
