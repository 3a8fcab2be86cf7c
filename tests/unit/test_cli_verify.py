"""`dpfl verify-certificate` and `dpfl verify-release`: one changed file, digest or number is named."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save
from torch import Tensor
from typer.testing import CliRunner

from app.core.canonical import canonical_bytes, canonical_sha256
from app.core.ids import new_id
from app.core.tokens import public_jwk, raw_public
from app.releases.certificate import Facts, build, sign
from app.releases.tensors import NoTensorFile, tensor_digests
from app.releases.verify import CertificateInvalid, require_unchanged
from app.runs.canaries import seated
from app.runs.manifest import Manifest
from cli import documents
from cli.main import app
from cli.verify import _checked as checked
from client.errors import ClientError
from engines.privacy import accounting, mechanism
from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_in_rounds import run_report
from engines.privacy.noise import NoiseStream, integer_gaussian
from modelling.base import weights_digest
from tests.builders import tiny_manifest
from tests.recording import Answer, PlayedRun, RecordingServer
from tests.unit.tiny_model import write_tiny_bert
from workers.handlers.audit_privacy import report_on

KEY = Ed25519PrivateKey.generate()
KEYS = {"keys": [public_jwk("k1", raw_public(KEY))]}
CONFIG = {"base_model_name_or_path": "tiny", "peft_type": "LORA", "r": 2}
WEIGHTS = {name: torch.arange(4.0).reshape(2, 2) for name in ("a.weight", "b.weight", "c.weight")}
ADAPTER = save(WEIGHTS)
LOCAL: dict[str, Any] = {"noise_multiplier": 2.0, "examples": {"kind": "poisson", "rate": 0.25}}
CENTRAL: dict[str, Any] = {
    "trust": "central",
    "unit": "client",
    "cohort": {"kind": "poisson", "rate": 0.25, "cap": 40, "n_max": 40},
    "noise_multiplier": 2.0,
}
CANARIES = Canaries(bytes(32), count=100, dimension=16)
SEATED: dict[str, Any] = CENTRAL | {
    "cohort": {"kind": "poisson", "rate": 0.25, "cap": 61, "n_max": 40},
    "audit": {"canaries": 100, "commitment": CANARIES.commitment},
}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The commands silence this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def dpfl(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done


def signed(content: dict[str, Any]) -> dict[str, Any]:
    return sign(content, lambda raw: ("k1", KEY.sign(raw)))


def content_of(
    privacy: dict[str, Any],
    *,
    base: Path,
    epsilon: float = 2.0,
    buffered: dict[str, int] | None = None,
    rounds: int = 2,
    method: str = "ffa",
    **price: Any,
) -> dict[str, Any]:
    manifest = tiny_manifest(privacy=deepcopy(privacy), rounds=rounds) | {"buffered": buffered}
    manifest["lora"]["method"] = method
    manifest["base_model"] |= {"locator": str(base), "weights_sha256": weights_digest(base)}
    steps = manifest["rounds"] if buffered is None else buffered["participations"]
    if method == "fedask":
        steps //= 2
    if manifest["privacy"]["trust"] == "local":
        steps *= manifest["training"]["local_steps"]
    facts = Facts(
        release_id=new_id(),
        run_id=new_id(),
        round_id=new_id(),
        number=1,
        adapter_sha256=hashlib.sha256(ADAPTER).hexdigest(),
        tensors=tensor_digests(io.BytesIO(ADAPTER)),
        adapter_config_sha256=canonical_sha256(CONFIG),
        previous=None,
        steps=steps,
        manifest=manifest,
        manifest_sha256="0" * 64,
        price={
            "noise_multiplier": manifest["privacy"]["noise_multiplier"],
            "epsilon": epsilon,
            "delta": 1e-5,
            "accountant": "an accountant",
        }
        | price,
        rounds_aggregated=[1],
        clients=2,
        accounts=[],
        paid=[],
        ancestors=[],
        unclaimed_runs=0,
        canaries=seated(manifest),
        audit=None,
        seals_at_deadline=True,
        issuer="https://issuer",
        issued_at=datetime(2026, 11, 1, tzinfo=UTC),
    )
    return build(facts)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("base"))


@pytest.fixture
def content(base: Path) -> dict[str, Any]:
    return content_of(LOCAL, base=base)


@pytest.fixture
def release(tmp_path: Path, content: dict[str, Any]) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(ADAPTER)
    (folder / "adapter_config.json").write_bytes(canonical_bytes(CONFIG))
    (folder / "certificate.json").write_text(json.dumps(signed(content)))
    (tmp_path / "jwks.json").write_text(json.dumps(KEYS))
    return folder


def verify(release: Path, *more: str, code: int = 0) -> Result:
    return dpfl("verify-release", str(release), "--key", str(release.parent / "jwks.json"), *more, code=code)


def check(tmp_path: Path, content: dict[str, Any], *more: str, code: int = 0) -> Result:
    file = tmp_path / "one.json"
    file.write_text(json.dumps(signed(content)))
    return dpfl("verify-certificate", str(file), *more, code=code)


def test_a_release_holds_by_signature_digests_and_recomputed_epsilon(release: Path) -> None:
    shown = verify(release).stdout
    assert shown.count("holds") == 2
    assert shown.count("is the certified one") == 3
    assert "3 tensors: are the certified ones" in shown
    assert "computed again: " in shown
    assert "not checked" not in shown


def test_a_changed_file_or_base_model_is_named(
    release: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    (release / "adapter_config.json").write_bytes(canonical_bytes(CONFIG | {"r": 4}))
    assert "[config_mismatch]" in verify(release, code=1).stderr
    (release / "adapter_config.json").write_bytes(
        canonical_bytes(CONFIG | {"base_model_name_or_path": "big"})
    )
    refused = verify(release, code=1).stderr
    assert "[base_mismatch]" in refused
    assert "big" in refused
    (release / "adapter_config.json").write_bytes(canonical_bytes(CONFIG))
    other = deepcopy(content)
    other["release"]["base_model"]["weights_sha256"] = "1" * 64
    (release / "certificate.json").write_text(json.dumps(signed(other)))
    assert "[base_mismatch]" in verify(release, code=1).stderr


def swapped(**changes: torch.Tensor | None) -> bytes:
    """The adapter's file with tensors changed, added or (None) taken out; `_` stands for a full stop."""
    weights: dict[str, Any] = WEIGHTS | {name.replace("_", "."): tensor for name, tensor in changes.items()}
    return save({name: tensor for name, tensor in weights.items() if tensor is not None})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"b_weight": torch.zeros(2, 2)}, "b.weight is not the certified one"),
        ({"b_weight": torch.arange(4.0).reshape(4, 1)}, "b.weight is not the certified one"),
        ({"b_weight": None}, "b.weight is certified and not in the adapter"),
        ({"aa_weight": torch.zeros(1)}, "aa.weight is in the adapter and not certified"),
        ({"c_weight": torch.zeros(2, 2), "b_weight": torch.ones(2, 2)}, "b.weight is not the certified one"),
    ],
)
def test_one_tensor_that_was_swapped_is_named(release: Path, changes: dict[str, Any], told: str) -> None:
    (release / "adapter_model.safetensors").write_bytes(swapped(**changes))
    refused = verify(release, code=1).stderr
    assert "[tensor_mismatch]" in refused
    assert told in refused


@pytest.mark.parametrize(
    "content_bytes", [b"adapter", ADAPTER[:-1], ADAPTER + b"x", save({"a": torch.zeros(2).half()})]
)
def test_an_adapter_that_is_no_file_of_float32_tensors_is_refused(
    release: Path, content_bytes: bytes
) -> None:
    (release / "adapter_model.safetensors").write_bytes(content_bytes)
    assert "[adapter_mismatch]" in verify(release, code=1).stderr


def test_the_same_tensors_in_another_file_are_not_the_certified_file(release: Path) -> None:
    (release / "adapter_model.safetensors").write_bytes(save(WEIGHTS, metadata={"note": "more"}))
    assert "[adapter_mismatch]" in verify(release, code=1).stderr


def test_a_tensors_digest_is_that_of_its_dtype_shape_and_bytes() -> None:
    (first, *_others) = tensor_digests(io.BytesIO(ADAPTER))
    values = WEIGHTS["a.weight"].numpy().tobytes()
    assert first == {
        "name": "a.weight",
        "dtype": "F32",
        "shape": [2, 2],
        "sha256": hashlib.sha256(b'{"dtype":"F32","shape":[2,2]}\n' + values).hexdigest(),
    }


@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": []},
        [],
    ],
)
def test_a_file_with_gaps_or_odd_entries_is_not_read(entries: Any) -> None:
    header = json.dumps(entries).encode()
    with pytest.raises(NoTensorFile):
        tensor_digests(io.BytesIO(len(header).to_bytes(8, "little") + header + bytes(8)))


@pytest.mark.parametrize(
    ("privacy", "member", "value"),
    [
        (LOCAL, "relation", "replace_one"),
        (LOCAL, "noise_multiplier", 4.0),
        (LOCAL, "divisor", 1.0),
        (CENTRAL, "cohort", {"kind": "everyone"}),
        (SEATED, "canaries_commitment", "0" * 64),
        (SEATED, "canaries", 50),
    ],
)
def test_a_claim_of_other_terms_than_the_pulled_manifests_is_named(
    release: Path, base: Path, privacy: dict[str, Any], member: str, value: object
) -> None:
    manifest = tiny_manifest(privacy=deepcopy(privacy))
    manifest["base_model"] |= {"locator": str(base), "weights_sha256": weights_digest(base)}
    (release / "manifest.json").write_bytes(canonical_bytes(manifest))
    content = content_of(privacy, base=base, epsilon=20.0)
    content["manifest_sha256"] = canonical_sha256(manifest)
    (release / "certificate.json").write_text(json.dumps(signed(content)))
    assert "manifest.json: is the certified one" in verify(release).stdout
    content["privacy"][member] = value
    (release / "certificate.json").write_text(json.dumps(signed(content)))
    refused = verify(release, code=1).stderr
    assert "[terms_differ]" in refused
    assert member in refused
    (release / "manifest.json").write_bytes(canonical_bytes(manifest | {"rounds": 3}))
    assert "[manifest_mismatch]" in verify(release, code=1).stderr


@pytest.mark.parametrize(("method", "fewer"), [("fedask", {}), ("ffa", {"steps": 4, "local_steps": 1})])
def test_a_claim_cannot_have_fewer_steps_than_the_pulled_manifest_plans(
    release: Path, base: Path, method: str, fewer: dict[str, int]
) -> None:
    manifest = tiny_manifest(privacy=deepcopy(LOCAL), rounds=4)
    manifest["base_model"] |= {"locator": str(base), "weights_sha256": weights_digest(base)}
    content = content_of(LOCAL, base=base, epsilon=20.0, rounds=4, method=method)
    content["privacy"] |= fewer
    content["manifest_sha256"] = canonical_sha256(manifest)
    (release / "certificate.json").write_text(json.dumps(signed(content)))
    assert "holds" in verify(release).stdout
    (release / "manifest.json").write_bytes(canonical_bytes(manifest))
    assert "[terms_differ]" in verify(release, code=1).stderr


def test_a_buffered_claim_cannot_halve_its_steps_by_naming_a_method_of_two_messages(
    release: Path, base: Path
) -> None:
    buffered = {"participations": 8, "staleness": 2}
    content = content_of(LOCAL, base=base, epsilon=20.0, buffered=buffered, rounds=8)
    content["release"]["lora_method"] = "fedask"
    content["privacy"]["steps"] //= 2
    (release / "certificate.json").write_text(json.dumps(signed(content)))
    assert "[schedule_differs]" in verify(release, code=1).stderr


def test_a_base_model_that_is_not_installed_is_said_not_to_be_compared(
    release: Path, content: dict[str, Any]
) -> None:
    content["release"]["base_model"]["locator"] = "package:no_such_package/model"
    (release / "certificate.json").write_text(json.dumps(signed(content)))
    assert "not installed here" in verify(release).stdout


@pytest.mark.parametrize(
    ("old", "new", "member"),
    [
        ('"epsilon": 2.0', '"epsilon": 1.0', "/privacy/this_run/epsilon"),
        ('"steps": 4', '"steps": 2', "/privacy/steps"),
        ('"round": 1', '"round": 2', "/release/round"),
        ('"parents": []', '"parents": ["x"]', "/release/parents"),
        ('"accounts": 0', '"accounts": 1', "/ledger/accounts"),
    ],
)
def test_a_changed_number_is_named_with_and_without_the_issuers_key(
    release: Path, old: str, new: str, member: str
) -> None:
    text = (release / "certificate.json").read_text()
    assert old in text
    (release / "certificate.json").write_text(text.replace(old, new))
    for refused in (verify(release, code=1), dpfl("verify-release", str(release), code=1)):
        assert "[member_changed]" in refused.stderr
        assert member in refused.stderr


def test_a_certificate_that_was_signed_again_by_somebody_else_does_not_hold(
    release: Path, content: dict[str, Any]
) -> None:
    content["privacy"]["this_run"]["epsilon"] = 1.999
    other = Ed25519PrivateKey.generate()
    forged = sign(content, lambda raw: ("k1", other.sign(raw)))
    (release / "certificate.json").write_text(json.dumps(forged))
    assert "[certificate_invalid]" in verify(release, code=1).stderr


def test_a_certificate_of_the_version_before_holds_as_it_was_signed(
    release: Path, content: dict[str, Any]
) -> None:
    del content["release"]["tensors"]
    content["version"] = 2
    value = base64.urlsafe_b64encode(KEY.sign(canonical_bytes(content))).rstrip(b"=").decode()
    former = content | {"signature": {"kid": "k1", "alg": "EdDSA", "value": value}}
    (release / "certificate.json").write_text(json.dumps(former))
    assert "tensors" not in verify(release).stdout
    for version in (3, 4):
        (release / "certificate.json").write_text(json.dumps(former | {"version": version}))
        assert "[certificate_invalid]" in verify(release, code=1).stderr


POPULATION: dict[str, Any] = {
    "claimed": True,
    "epsilon": 4.0,
    "delta": 2e-5,
    "unit": "example",
    "relation": "zero_out",
    "trusts": ["local"],
    "adversary": "somebody",
    "account_kind": "basic",
}


def test_the_sum_of_all_runs_is_told_with_its_unit_and_relation(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    assert "all runs on the same data: nothing is claimed" in check(tmp_path, content).stdout
    content["privacy"]["population"] = POPULATION
    told = "epsilon 4.0 at delta 2e-05 for one example under zero_out, trusts local"
    assert told in check(tmp_path, content).stdout


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("unit", "client"),
        ("unit", None),
        ("relation", "replace_one"),
        ("trusts", ["central"]),
        ("trusts", ["local", "other"]),
        ("trusts", "local"),
        ("adversary", ""),
        ("epsilon", 1.99),
        ("epsilon", True),
        ("delta", 0.9e-5),
        ("delta", None),
        ("claimed", "yes"),
    ],
)
def test_a_sum_that_does_not_fit_the_runs_own_claim_is_named(
    tmp_path: Path, content: dict[str, Any], member: str, value: object
) -> None:
    content["privacy"]["population"] = POPULATION | {member: value}
    refused = check(tmp_path, content, code=1).stderr
    assert "[population_differs]" in refused
    assert member in refused


def test_a_data_sets_zero_out_is_not_taken_for_a_records(tmp_path: Path, base: Path) -> None:
    of_both = POPULATION | {"trusts": ["local", "central"]}
    for relation, code in (("zero_out", 1), ("replace_one", 0)):
        content = content_of(CENTRAL | {"relation": relation}, base=base, epsilon=3.9)
        content["privacy"]["population"] = of_both
        done = check(tmp_path, content, code=code)
        assert ("[population_differs]" in done.stderr) is bool(code)


def test_the_sum_of_version_3_is_not_taken_for_a_claim(tmp_path: Path, content: dict[str, Any]) -> None:
    content["version"] = 3
    content["privacy"]["population"] = {"claimed": True, "epsilon": 4.0, "delta": 2e-5}
    assert "is not taken for a claim" in check(tmp_path, content).stdout


def set_epsilon(content: dict[str, Any]) -> None:
    content["privacy"]["this_run"]["epsilon"] = 0.5


def set_noise(content: dict[str, Any]) -> None:
    content["privacy"]["noise_multiplier"] = 0.5


def set_rate(content: dict[str, Any]) -> None:
    content["privacy"]["examples"] = {"kind": "all"}


def set_steps(content: dict[str, Any]) -> None:
    content["privacy"] |= {"steps": 400, "local_steps": 200}


def of_other_local_steps(content: dict[str, Any]) -> None:
    content["privacy"]["local_steps"] = 4


def drop_steps(content: dict[str, Any]) -> None:
    content["privacy"]["steps"] = 1
    del content["privacy"]["local_steps"]


def of_no_planned_round(content: dict[str, Any]) -> None:
    content["release"] |= {"round": 3, "rounds_aggregated": [1, 2, 3]}


def of_another_round(content: dict[str, Any]) -> None:
    content["release"]["rounds_aggregated"] = [1, 2]


def of_a_round_twice(content: dict[str, Any]) -> None:
    content["release"]["rounds_aggregated"] = [1, 1]


def set_delta(content: dict[str, Any]) -> None:
    content["privacy"]["this_run"]["delta"] = 1e-10


def set_kind(content: dict[str, Any]) -> None:
    content["privacy"]["examples"] = {"kind": "shuffled"}


def set_text(content: dict[str, Any]) -> None:
    content["privacy"]["this_run"]["epsilon"] = "2.0"


def write_delta(content: dict[str, Any]) -> None:
    content["privacy"]["this_run"]["delta"] = "1e-5"


def write_noise(content: dict[str, Any]) -> None:
    content["privacy"]["noise_multiplier"] = "2.0"


def write_rate(content: dict[str, Any]) -> None:
    content["privacy"]["examples"]["rate"] = "0.25"


def set_truth(content: dict[str, Any]) -> None:
    content["privacy"]["noise_multiplier"] = 100.0  # costs under 1, which `true` equals
    content["privacy"]["this_run"]["epsilon"] = True


def of_a_client(content: dict[str, Any]) -> None:
    content["privacy"]["unit"] = "client"


def write_version(content: dict[str, Any]) -> None:
    content["version"] = 5.0


def drop_delta(content: dict[str, Any]) -> None:
    del content["privacy"]["this_run"]["delta"]


def drop_privacy(content: dict[str, Any]) -> None:
    del content["privacy"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_epsilon, "claim_too_small"),
        (set_noise, "claim_too_small"),
        (set_rate, "claim_too_small"),
        (set_steps, "claim_too_small"),
        (set_delta, "claim_too_small"),
        (set_text, "claim_too_small"),
        (set_truth, "claim_too_small"),
        (write_delta, "cannot_price"),
        (write_noise, "cannot_price"),
        (write_rate, "cannot_price"),
        (of_a_client, "cannot_price"),  # whose records' sampling is no sampling of clients
        (write_version, "certificate_invalid"),
        (drop_steps, "schedule_differs"),
        (of_other_local_steps, "schedule_differs"),
        (of_no_planned_round, "schedule_differs"),
        (of_another_round, "schedule_differs"),
        (of_a_round_twice, "schedule_differs"),
        (set_kind, "cannot_price"),
        (drop_delta, "cannot_price"),
        (drop_privacy, "certificate_invalid"),
    ],
)
def test_a_claim_that_its_own_parameters_do_not_give_is_named(
    tmp_path: Path, content: dict[str, Any], change: Change, code: str
) -> None:
    change(content)
    assert f"[{code}]" in check(tmp_path, content, code=1).stderr


def test_without_a_key_the_check_says_that_no_signature_was_checked(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    assert "signature: not checked" in check(tmp_path, content).stdout


def test_a_certificate_is_held_against_the_one_before_it(
    tmp_path: Path, base: Path, content: dict[str, Any]
) -> None:
    former = signed(content)
    (tmp_path / "former.json").write_text(json.dumps(former))
    chained = content | {"previous": canonical_sha256(former)}
    option = ("--previous", str(tmp_path / "former.json"))
    assert "the one that this one follows" in check(tmp_path, chained, *option).stdout
    assert "[chain_broken]" in check(tmp_path, content, *option, code=1).stderr
    of_another_plan = chained | {"manifest_sha256": "1" * 64}
    assert "[chain_broken]" in check(tmp_path, of_another_plan, *option, code=1).stderr
    of_another_run = content_of(LOCAL, base=base) | {"previous": canonical_sha256(former)}
    assert "[chain_broken]" in check(tmp_path, of_another_run, *option, code=1).stderr


def test_the_accounts_heads_are_held_against_the_commitment(tmp_path: Path, content: dict[str, Any]) -> None:
    heads = ["a" * 64, "b" * 64]
    content["ledger"] = {"accounts": 2, "heads_sha256": canonical_sha256(heads)}
    (tmp_path / "heads.json").write_text(json.dumps(heads))
    option = ("--heads", str(tmp_path / "heads.json"))
    assert "heads are the certified ones" in check(tmp_path, content, *option).stdout
    (tmp_path / "heads.json").write_text(json.dumps(heads[::-1]))
    assert "[ledger_mismatch]" in check(tmp_path, content, *option, code=1).stderr


def test_a_central_claim_is_priced_by_its_rounds_and_its_cohort(tmp_path: Path, base: Path) -> None:
    content = content_of(CENTRAL, base=base)
    assert content["privacy"]["steps"] == content["release"]["rounds_planned"] == 2
    assert "holds" in check(tmp_path, content).stdout
    content["privacy"]["cohort"]["rate"] = 1.0
    assert "[claim_too_small]" in check(tmp_path, content, code=1).stderr
    for other in ({"steps": 4}, {"steps": 1, "participations": 1}):
        of_other_rounds = content_of(CENTRAL, base=base, epsilon=20.0)
        of_other_rounds["privacy"] |= other
        assert "[schedule_differs]" in check(tmp_path, of_other_rounds, code=1).stderr
    of_records = content_of(CENTRAL | {"unit": "example"}, base=base)
    assert "[cannot_price]" in check(tmp_path, of_records, code=1).stderr


def test_a_buffered_claim_is_priced_by_the_updates_that_one_client_may_send(
    tmp_path: Path, base: Path
) -> None:
    content = content_of(LOCAL, base=base, buffered={"participations": 2, "staleness": 1}, rounds=5)
    assert "at most 2 updates of each client in 5" in content["privacy"]["this_run"]["covers"]
    assert "holds" in check(tmp_path, content).stdout
    content["privacy"]["participations"] = 6  # more than one a round
    assert "[schedule_differs]" in check(tmp_path, content, code=1).stderr
    content["privacy"]["participations"] = 3  # four steps are not those of three updates
    assert "[schedule_differs]" in check(tmp_path, content, code=1).stderr


def test_under_fedask_a_claim_is_priced_by_the_rounds_that_train(tmp_path: Path, base: Path) -> None:
    content = content_of(LOCAL, base=base, method="fedask", rounds=4)
    assert "in odd rounds alone" in content["privacy"]["this_run"]["covers"]
    assert content["privacy"]["steps"] == 2 * content["privacy"]["local_steps"]
    assert "holds" in check(tmp_path, content).stdout
    content["release"]["lora_method"] = "ffa"  # which trains in all of them
    assert "[schedule_differs]" in check(tmp_path, content, code=1).stderr
    half = content_of(LOCAL, base=base, method="fedask", rounds=4)
    half["privacy"]["steps"] //= 2
    assert "[schedule_differs]" in check(tmp_path, half, code=1).stderr


@pytest.mark.parametrize("clients", [41, "40", None, True])
def test_a_run_of_more_clients_than_its_cohort_is_priced_for_is_refused(
    tmp_path: Path, base: Path, clients: object
) -> None:
    content = content_of(CENTRAL, base=base)
    content["release"]["clients"] = clients
    assert "[pool_differs]" in check(tmp_path, content, code=1).stderr


def test_a_person_in_several_data_sets_is_priced_for_all_of_them(tmp_path: Path, base: Path) -> None:
    person = LOCAL | {"unit": "person", "person": {"id_field": "a", "records_cap": 2, "silos": 3}}
    content = content_of(person, base=base, epsilon_by_silos={"1": 2.0, "3": 4.0})
    assert "in 3 data sets" in check(tmp_path, content).stdout
    content["privacy"]["epsilon_by_silos"]["3"] = 2.0
    assert "[claim_too_small]" in check(tmp_path, content, code=1).stderr
    content["privacy"]["epsilon_by_silos"] = {"1": 2.0}
    assert "[claim_too_small]" in check(tmp_path, content, code=1).stderr
    content["privacy"]["epsilon_by_silos"] = {"1": 1.99, "3": 4.0}
    assert "[claims_differ]" in check(tmp_path, content, code=1).stderr


def test_a_clip_norm_that_moves_has_the_noise_that_its_sum_needs(tmp_path: Path, base: Path) -> None:
    moving = CENTRAL | {"adaptive_clip": {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 20.0}}
    content = content_of(moving, base=base, clip_noise_multiplier=2.01)
    assert "holds" in check(tmp_path, content).stdout
    content["privacy"]["clip_noise_multiplier"] = 2.0
    assert "[clip_noise_too_small]" in check(tmp_path, content, code=1).stderr


def report_of(privacy: dict[str, Any]) -> dict[str, Any]:
    report = report_on(Manifest.model_validate(tiny_manifest(privacy=privacy | {"audit": {"canaries": 100}})))
    assert report is not None
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(report)))
    return found


def test_the_audit_is_computed_again_and_told_beside_the_bound(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    report = report_of(LOCAL)
    content["privacy"]["audit"] = {"report": report}
    shown = check(tmp_path, content).stdout
    assert "epsilon 2.0 at delta 1e-05: holds" in shown
    assert f"estimate {report['estimate']:.3f} (no bound)" in shown
    for name, value in [
        ("lower_bound", 1.5),
        ("claimed_epsilon", 9.0),
        ("refuted", True),
        ("secret", "0" * 64),
    ]:
        content["privacy"]["audit"] = {"report": report | {name: value}}
        assert "[audit_differs]" in check(tmp_path, content, code=1).stderr
    assert f"{report['largest_reachable']:.3f} at most" in shown
    content["privacy"]["audit"] = {"report": report, "can_refute": False}
    assert "can_refute" in check(tmp_path, content, code=1).stderr
    content["privacy"]["audit"] = {"report": report_of(LOCAL | {"noise_multiplier": 3.0})}
    refused = check(tmp_path, content, code=1).stderr
    assert "[audit_differs]" in refused
    assert "claimed_epsilon" in refused


def test_an_audit_that_refutes_is_not_passed_over(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        return integer_gaussian(stream, size, std_over_grid=std_over_grid) // 10

    monkeypatch.setattr(mechanism, "integer_gaussian", too_little)
    content["privacy"]["audit"] = {"report": report_of(LOCAL)}
    assert "[audit_refutes]" in check(tmp_path, content, code=1).stderr


def test_an_audit_that_could_not_have_refuted_is_said_to_say_nothing(tmp_path: Path, base: Path) -> None:
    little = LOCAL | {"noise_multiplier": 1.0}
    content = content_of(little, base=base, epsilon=8.0)
    content["privacy"]["audit"] = {"report": report_of(little), "can_refute": False}
    assert "could not have refuted whatever the code does" in check(tmp_path, content).stdout


def run_report_of(content: dict[str, Any], canaries: Canaries = CANARIES) -> dict[str, Any]:
    this_run = content["privacy"]["this_run"]
    scores = [[float(number % 7) for number in range(canaries.count)]]
    report = run_report(
        canaries, scores, claimed_epsilon=this_run["epsilon"], claimed_delta=this_run["delta"]
    )
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(report)))
    return found


def test_canaries_in_the_rounds_are_priced_with_the_clients(tmp_path: Path, base: Path) -> None:
    content = content_of(SEATED, base=base)
    assert (content["privacy"]["canaries"], "audit" in content["privacy"]) == (100, False)
    assert (
        "100 canaries take part in the rounds; the last release opens them" in check(tmp_path, content).stdout
    )
    for wrong in (0, -1, "100"):
        content["privacy"]["canaries"] = wrong  # 40 clients alone never fill a cap of 61
        assert "[cannot_price]" in check(tmp_path, content, code=1).stderr
    content["privacy"]["canaries"] = 100
    for wrong in (None, "", "C" * 64):  # nothing that coins could be opened against
        content["privacy"]["canaries_commitment"] = wrong
        assert "canaries_commitment" in check(tmp_path, content, code=1).stderr


def test_a_run_never_commits_to_other_canaries(tmp_path: Path, base: Path) -> None:
    former = signed(content_of(SEATED, base=base))
    (tmp_path / "former.json").write_text(json.dumps(former))
    content = {name: member for name, member in former.items() if name != "signature"}
    content = deepcopy(content) | {"previous": canonical_sha256(former)}
    option = ("--previous", str(tmp_path / "former.json"))
    assert "the one that this one follows" in check(tmp_path, content, *option).stdout
    content["privacy"]["canaries_commitment"] = "0" * 64
    assert "[chain_broken]" in check(tmp_path, content, *option, code=1).stderr


def test_the_last_release_opens_the_canaries_that_the_run_has_committed_to(
    tmp_path: Path, base: Path
) -> None:
    content = content_of(SEATED, base=base)
    last = content["release"]["rounds_planned"]
    content["release"] |= {"round": last, "rounds_aggregated": list(range(1, last + 1))}
    missing = check(tmp_path, content, code=1).stderr
    assert "[audit_differs]" in missing
    report = run_report_of(content)
    content["privacy"]["audit"] = {"report": report}
    assert (
        "audit of the run by 100 canaries in its rounds, claimed at 2.000" in check(tmp_path, content).stdout
    )
    others = Canaries(b"x" * 32, count=100, dimension=16)
    one_sum = report_of(SEATED | {"trust": "local", "unit": "example", "cohort": {"kind": "everyone"}})
    for other in (run_report_of(content, others), report | {"claimed_epsilon": 3.0}, one_sum):
        content["privacy"]["audit"] = {"report": other}
        assert "[audit_differs]" in check(tmp_path, content, code=1).stderr


def test_a_report_on_a_run_is_not_taken_for_one_of_a_sum(tmp_path: Path, content: dict[str, Any]) -> None:
    content["privacy"]["audit"] = {"report": run_report_of(content)}
    assert "statistic" in check(tmp_path, content, code=1).stderr


def test_a_release_that_claims_nothing_says_so(tmp_path: Path, base: Path) -> None:
    nothing = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None, "noise_multiplier": None}
    assert "nothing is claimed" in check(tmp_path, content_of(nothing, base=base)).stdout


def test_a_certificate_of_another_version_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    assert "[certificate_invalid]" in check(tmp_path, content | {"version": 1}, code=1).stderr


def test_a_list_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text("[]")
    assert "[certificate_invalid]" in dpfl("verify-certificate", str(tmp_path / "one.json"), code=1).stderr


def test_the_issuers_keys_may_be_fetched(release: Path, base: Path) -> None:
    with RecordingServer(PlayedRun({}, b"")) as server:
        server.script = lambda heard: Answer(payload=KEYS) if heard.path == "/keys.json" else None
        dpfl("verify-release", str(release), "--key", f"{server.url}/keys.json")


def test_the_signature_is_over_the_canonical_list_of_the_members_digests(content: dict[str, Any]) -> None:
    signature = signed(content)["signature"]
    assert signature["members"]["/privacy/this_run/epsilon"] == hashlib.sha256(b"2.0").hexdigest()
    raw = base64.urlsafe_b64decode(signature["value"] + "==")
    KEY.public_key().verify(raw, canonical_bytes(signature["members"]))


@pytest.mark.parametrize("text", ["[]", '[{"version": 1}]', '"text"', "1", "null"])
def test_json_that_is_no_object_is_refused_in_one_line_wherever_it_is_read(release: Path, text: str) -> None:
    other, certificate = str(release.parent / "other.json"), str(release / "certificate.json")
    Path(other).write_text(text)
    for words, code in (
        (("verify-certificate", other), "certificate_invalid"),
        (("verify-certificate", certificate, "--previous", other), "certificate_invalid"),
        (("verify-certificate", certificate, "--key", other), "bad_keys"),
    ):
        done = dpfl(*words, code=1)
        assert done.stderr.startswith(f"dpfl: [{code}] ")
        assert done.stderr.count("\n") == 1
    Path(certificate).write_text(text)
    assert "[certificate_invalid]" in dpfl("verify-release", str(release), code=1).stderr


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_signature_with_a_member_that_nothing_covers_is_refused(
    release: Path, content: dict[str, Any], version: int
) -> None:
    content["version"] = version
    certificate = signed(content)
    if version == 2:
        value = base64.urlsafe_b64encode(KEY.sign(canonical_bytes(content))).rstrip(b"=").decode()
        certificate["signature"] = {"kid": "k1", "alg": "EdDSA", "value": value}
    certificate["signature"]["attested_by"] = "somebody"
    (release / "certificate.json").write_text(json.dumps(certificate))
    for refused in (verify(release, code=1), dpfl("verify-release", str(release), code=1)):
        assert "[certificate_invalid]" in refused.stderr
        assert "attested_by" in refused.stderr


def test_a_signature_has_one_spelling(release: Path, content: dict[str, Any]) -> None:
    """86 letters hold four bits more than 64 bytes; they would be a difference that nothing covers."""
    certificate = signed(content)
    value = certificate["signature"]["value"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    certificate["signature"]["value"] = value[:-1] + letters[letters.index(value[-1]) + 1]
    (release / "certificate.json").write_text(json.dumps(certificate))
    assert "[certificate_invalid]" in verify(release, code=1).stderr


HALF_A_PAIR = b'"\\ud800"'
"""Written as JSON allows, and no text: it has no bytes, so that no digest of it exists."""


@pytest.mark.parametrize("odd", [HALF_A_PAIR, b"1e999", b"NaN", b"[" * 100_000])
def test_text_or_a_number_that_no_canonical_form_holds_is_refused_in_one_line(
    release: Path, content: dict[str, Any], odd: bytes
) -> None:
    certificate, other = release / "certificate.json", str(release.parent / "other.json")
    whole = canonical_bytes(signed(content)).replace(b'"https://issuer"', odd)
    Path(other).write_bytes(whole)
    config = canonical_bytes(CONFIG | {"note": "x"}).replace(b'"x"', odd)
    for words in (
        ("verify-certificate", other),
        ("verify-certificate", other, "--key", str(release.parent / "jwks.json")),
        ("verify-certificate", str(certificate), "--previous", other),
        ("verify-certificate", str(certificate), "--heads", other),
        ("verify-certificate", str(certificate), "--key", other),
    ):
        done = dpfl(*words, code=1)
        assert done.stderr.startswith("dpfl: [unexpected_answer] the other.json is not readable JSON")
        assert done.stderr.count("\n") == 1
    (release / "adapter_config.json").write_bytes(config)
    assert "[unexpected_answer]" in dpfl("verify-release", str(release), code=1).stderr


@pytest.mark.parametrize("odd", ["\ud800", float("inf"), float("nan")])
def test_whoever_checks_a_parsed_certificate_is_told_that_it_has_no_canonical_form(
    content: dict[str, Any], odd: object
) -> None:
    whole = signed(content) | {"issuer": odd}
    for certificate in (whole, whole | {"version": 2, "signature": {"kid": "k1"}}):
        with pytest.raises(CertificateInvalid, match="no canonical form"):
            require_unchanged(certificate)


def leaves_of(value: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every member, those that are objects themselves included."""
    for name, member in value.items():
        yield (*above, name)
        if isinstance(member, dict):
            yield from leaves_of(member, (*above, name))


ODD: tuple[Any, ...] = (..., None, True, -1, 10**400, 1e308, "x", [], {})
"""Put in the place of a member, which `...` takes out."""


def test_no_certificate_however_odd_and_well_signed_ends_in_an_error_of_ours(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accounting.epsilon_pld
    priced = functools.cache(lambda runs, delta: real(runs, delta=delta))
    monkeypatch.setattr(accounting, "epsilon_pld", lambda runs, *, delta: priced(tuple(runs), delta))
    person = LOCAL | {"unit": "person", "person": {"id_field": "a", "records_cap": 2, "silos": 2}}
    moving = CENTRAL | {"adaptive_clip": {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 20.0}}
    local = content_of(person, base=base, epsilon_by_silos={"1": 2.0, "2": 4.0})
    local["privacy"]["population"] = POPULATION | {"unit": "person"}
    opened = content_of(SEATED, base=base)
    opened["release"] |= {"round": 2, "rounds_aggregated": [1, 2]}
    opened["privacy"]["audit"] = {"report": run_report_of(opened), "can_refute": True}
    file, refused = tmp_path / "odd.json", 0
    for whole in (local, content_of(moving, base=base, clip_noise_multiplier=2.01), opened):
        for (*above, name), odd in product(leaves_of(whole), ODD):
            content = deepcopy(whole)
            section = functools.reduce(operator.getitem, above, content)
            del section[name]
            if odd is not ...:
                section[name] = odd
            file.write_bytes(canonical_bytes(signed(content)))
            try:
                checked(documents.read(file), None, None, None)
            except ClientError:
                refused += 1
    assert refused > 400
