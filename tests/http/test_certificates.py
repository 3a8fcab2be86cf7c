"""What certificates say under each trust and unit, and what they chain and commit to."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget import ledger
from app.budget.queries import account_of_client, accounts_reserving
from app.core.canonical import canonical_bytes, canonical_sha256
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.releases.certificate import ledger_of
from app.releases.models import Release
from app.rounds import lifecycle
from app.runs import service
from app.runs.charges import run_ref
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.publication import release_round
from cli.binding import _terms
from tests.builders import build_update
from tests.central import EVERYONE, SEATED, central_manifest, start_central_run
from tests.central import PRICE as CENTRAL_PRICE
from tests.federation import PRICE, Federation
from tests.http.accounts import VAULT

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0}
TENSORS = [{"name": "w", "dtype": "F32", "shape": [1], "sha256": "e" * 64}]
PERSON: dict[str, Any] = {
    "unit": "person",
    "person": {"id_field": "author", "records_cap": 3, "silos": 2},
}
BUFFERED: dict[str, Any] = {
    "buffered": {"participations": 2, "staleness": 1},
    "quorum": {"min_updates": 2, "max_updates": 2},
}
ADAPTIVE: dict[str, Any] = {"adaptive_clip": {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.0}}


class Issuer:
    """Publishes rounds with the gateway's keys."""

    def __init__(self, api: TestClient, session: Session, settings: Settings) -> None:
        self.api, self.session, self.settings = api, session, settings
        self._federation: Federation | None = None
        self.unit = "example"
        """Of the accounts of the federation's clients."""
        ensure_signing_keys(session, VAULT)

    @property
    def federation(self) -> Federation:
        if self._federation is None:
            self._federation = Federation(
                self.session, self.settings, epsilon=20.0, delta=1e-4, unit=self.unit
            )
        return self._federation

    def issue(self, run: Run, number: int = 1) -> Release:
        round_ = self.federation.round_of(run, number)
        if run.manifest["privacy"]["trust"] == "local":
            for client in self.federation.clients:
                build_update(self.session, round_, client.id)
        lifecycle.seal(self.session, round_.id, actor="test", vault=VAULT)
        lifecycle.begin_aggregation(self.session, round_.id, actor="test")
        lifecycle.record_candidate(
            self.session, round_.id, candidate_sha256="c" * 64, device="cpu", actor="test"
        )
        release = release_round(
            self.session,
            round_.id,
            adapter_sha256="d" * 64,
            tensors=TENSORS,
            size_bytes=1,
            adapter_config=CONFIG,
            sign=self.api.app.state.keys.sign,
            issuer="http://127.0.0.1:8000",
        )
        lifecycle.publish(self.session, round_.id, actor="test")
        service.after_publish(self.session, run.id, actor="test", region=None)
        self.session.expire(release)
        return release


@pytest.fixture
def issuer(api: TestClient, session: Session, settings: Settings) -> Issuer:
    return Issuer(api, session, settings)


def central(issuer: Issuer, **privacy: Any) -> dict[str, Any]:
    run = start_central_run(issuer.session, issuer.settings, **privacy)
    claim: dict[str, Any] = issuer.issue(run).certificate["privacy"]
    return claim


def test_each_certificate_of_a_run_names_the_one_before_it(issuer: Issuer) -> None:
    run = issuer.federation.running()
    first, second = issuer.issue(run), issuer.issue(run, 2)
    assert first.certificate["previous"] is None
    assert second.certificate["previous"] == canonical_sha256(first.certificate)


def test_the_adapters_configuration_is_part_of_what_is_signed(issuer: Issuer) -> None:
    release = issuer.issue(issuer.federation.running())
    assert release.certificate["release"]["adapter_config_sha256"] == canonical_sha256(release.adapter_config)


def test_the_ledger_is_committed_to_by_the_heads_of_all_accounts_that_pay(issuer: Issuer) -> None:
    run = issuer.federation.running()
    committed = issuer.issue(run).certificate["ledger"]
    accounts = accounts_reserving(issuer.session, run_ref(run.id))
    heads = [account.head_hash for account in sorted(accounts, key=lambda account: account.id)]
    assert committed == {"accounts": 2, "heads_sha256": canonical_sha256(heads)}
    one = account_of_client(issuer.session, issuer.federation.clients[0].id)
    ledger.grant(issuer.session, one.id, ref="g", epsilon=1.0, delta=0.0, reason="r", actor="test")
    assert ledger_of(accounts_reserving(issuer.session, run_ref(run.id))) != committed


def test_under_central_the_adversary_is_everybody_but_the_operator(issuer: Issuer) -> None:
    claim = central(issuer)
    assert claim["adversary"].startswith("Everybody but the operator of the server")
    assert "times of all rounds" in claim["adversary"]
    assert "which clients, or how many, were drawn" in claim["adversary"]
    assert "declared and not attested" in claim["basis"]
    assert (claim["unit"], claim["steps"], claim["noise_multiplier"]) == ("client", 2, 1.5)
    assert claim["unit_means"].startswith("The whole data set of one client")


def test_the_adversary_learns_from_the_time_of_a_seal_only_where_the_plan_lets_it(issuer: Issuer) -> None:
    assert "it is assumed that nobody infers them from either" in central(issuer)["adversary"]
    run = start_central_run(issuer.session, issuer.settings, seal=None)
    said = issuer.issue(run).certificate["privacy"]["adversary"]
    assert "the time of a seal says nothing of that" in said


def test_without_a_secret_cohort_none_is_claimed(issuer: Issuer) -> None:
    claim = central(issuer, **EVERYONE)
    assert "no secret about who does" in claim["adversary"]
    assert "were drawn" not in claim["adversary"]


def of_mixed(issuer: Issuer) -> dict[str, Any]:
    """The claim of a run by client, on accounts that paid for a run by record under zero-out before."""
    federation = issuer.federation
    federation.running()
    ids = [client.id for client in federation.clients]
    cohort = {"kind": "poisson", "rate": 0.5, "cap": 2, "n_max": 2}
    plan = central_manifest(cohort=cohort, relation="replace_one")
    plan["quorum"] |= {"max_updates": 2}
    run = service.create(
        issuer.session,
        federation.coordinator,
        name=None,
        manifest=Manifest.model_validate(plan),
        client_ids=ids,
        settings=federation.settings,
    )
    run = service.price(issuer.session, federation.coordinator, run.id)
    service.accept_price(
        issuer.session,
        run.id,
        version=run.version,
        price=CENTRAL_PRICE,
        start_adapter_sha256="a" * 64,
        actor="job",
    )
    run = service.start(issuer.session, federation.coordinator, run.id, region=None)
    assert run.state == "running", run.reason
    claim: dict[str, Any] = issuer.issue(run).certificate["privacy"]
    return claim


def test_a_data_sets_replacement_covers_a_record_and_their_sum_is_a_records_against_both_adversaries(
    issuer: Issuer,
) -> None:
    claim = of_mixed(issuer)
    population = claim["population"]
    assert (claim["unit"], claim["relation"]) == ("client", "replace_one")
    assert (population["epsilon"], population["delta"]) == (7.8, 2e-5)
    assert (population["unit"], population["relation"]) == ("example", "zero_out")
    assert population["trusts"] == ["local", "central"]
    assert "of one example in one data set under zero_out" in population["statement"]
    assert "not the operator" in population["adversary"]
    assert "which records" in population["adversary"]
    assert "were drawn" in population["adversary"]


@pytest.mark.parametrize(("unit", "plan"), [("example", {}), ("person", PERSON)])
def test_where_an_account_once_paid_for_a_data_sets_zero_out_no_sum_is_claimed(
    issuer: Issuer, unit: str, plan: dict[str, Any]
) -> None:
    """As accounts did that are older than the refusal of such a charge."""
    issuer.unit = unit
    run = issuer.federation.running(price=PRICE | {"epsilon_by_silos": {"1": 3.9}}, privacy=plan)
    paying = account_of_client(issuer.session, issuer.federation.clients[0].id).id
    event = {"unit": "client", "relation": "zero_out", "trust": "central"}
    ledger.reserve(issuer.session, paying, ref="run:old", amount=1, delta_amount=0, event=event, actor="t")
    claim = issuer.issue(run).certificate["privacy"]
    assert claim["claimed"] is True
    assert set(claim["population"]) == {"claimed", "statement"}
    assert claim["population"]["claimed"] is False
    assert f"client under zero_out, {unit} under zero_out" in claim["population"]["statement"]


def test_a_person_in_several_data_sets_has_its_own_epsilon(issuer: Issuer) -> None:
    price = PRICE | {"epsilon_by_silos": {"1": 3.9, "2": 6.0}}
    issuer.unit = "person"
    claim = issuer.issue(issuer.federation.running(price=price, privacy=PERSON)).certificate["privacy"]
    assert (claim["person"], claim["epsilon_by_silos"]) == (PERSON["person"], {"1": 3.9, "2": 6.0})
    assert "person" in claim["unit_means"]
    assert not any("person" in line for line in claim["not_claimed"])


def test_a_clip_norm_that_moves_is_told_with_its_share_of_the_noise(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CENTRAL_PRICE, "clip_noise_multiplier", 1.6)
    claim = central(issuer, **ADAPTIVE)
    assert claim["adaptive_clip"] == ADAPTIVE["adaptive_clip"]
    assert (claim["noise_multiplier"], claim["clip_noise_multiplier"]) == (1.5, 1.6)
    assert "clip_noise_multiplier" in claim["adaptive_clip_means"]


@pytest.mark.parametrize("plan", [{}, EVERYONE, ADAPTIVE, SEATED])
def test_a_central_claim_repeats_the_terms_of_its_runs_manifest(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: dict[str, Any]
) -> None:
    monkeypatch.setitem(CENTRAL_PRICE, "clip_noise_multiplier", 1.6)
    held(issuer, start_central_run(issuer.session, issuer.settings, **plan), tmp_path)


@pytest.mark.parametrize("plan", [{}, {"privacy": PERSON}, BUFFERED])
def test_a_local_claim_repeats_the_terms_of_its_runs_manifest(
    issuer: Issuer, tmp_path: Path, plan: dict[str, Any]
) -> None:
    issuer.unit = plan.get("privacy", {}).get("unit", "example")
    price = PRICE | {"epsilon_by_silos": {"1": 3.9, "2": 6.0}}
    held(issuer, issuer.federation.running(price=price, **plan), tmp_path)


def held(issuer: Issuer, run: Run, folder: Path) -> None:
    """Hold a release's certificate against the manifest that is pulled with it."""
    certificate = issuer.issue(run).certificate
    (folder / "manifest.json").write_bytes(canonical_bytes(run.manifest))
    assert _terms(folder, certificate) == ["manifest.json: is the certified one"]
