"""Releases: what the certificate claims and does not, that its signature holds, and how parts are served."""

import copy
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget import audits, ledger
from app.budget.queries import account_of_client
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.identity.models import ClientState
from app.identity.roles import Role
from app.releases.members import member_digests
from app.releases.models import Release
from app.releases.verify import CertificateInvalid, MemberChanged, verify
from app.rounds import lifecycle
from app.runs import service
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.publication import release_round
from tests.builders import build_client, build_update, principal_of, tiny_manifest
from tests.federation import NOTHING, OPEN_PRIVACY, PRICE, Federation
from tests.http.accounts import VAULT, Caller, add_caller, client_headers

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0}
TENSORS = [{"name": "w", "dtype": "F32", "shape": [1], "sha256": "e" * 64}]


class Publisher:
    """Publishes rounds as the workers do, with the gateway's own keys."""

    def __init__(self, api: TestClient, federation: Federation) -> None:
        self.api, self.federation = api, federation
        self.session = federation.session

    def publish(
        self,
        run: Run,
        number: int = 1,
        *,
        content: bytes = b"adapter",
        candidate: str = "c" * 64,
        optimizer: str | None = None,
    ) -> Release:
        round_ = self.federation.round_of(run, number)
        digest = self.api.app.state.blobs.of(run.organisation_id).put(content)
        for client in self.federation.clients:
            build_update(self.session, round_, client.id)
        lifecycle.seal(self.session, round_.id, actor="test", vault=VAULT)
        lifecycle.begin_aggregation(self.session, round_.id, actor="test")
        lifecycle.record_candidate(
            self.session,
            round_.id,
            candidate_sha256=candidate,
            device="cpu",
            actor="test",
            optimizer_sha256=optimizer,
        )
        self.session.refresh(round_)
        release = release_round(
            self.session,
            round_.id,
            adapter_sha256=digest,
            tensors=TENSORS,
            size_bytes=len(content),
            adapter_config=CONFIG,
            sign=self.api.app.state.keys.sign,
            issuer="http://127.0.0.1:8000",
        )
        lifecycle.publish(self.session, round_.id, actor="test")
        service.after_publish(self.session, run.id, actor="test", region=None)
        return release

    def continuing(self, release: Release, *, price: dict[str, Any] = PRICE, **changes: Any) -> Run:
        """Another run of the same clients that starts from a release."""
        federation = self.federation
        run = service.create(
            self.session,
            federation.coordinator,
            name=None,
            manifest=Manifest.model_validate(tiny_manifest(**changes)),
            client_ids=[client.id for client in federation.clients],
            settings=federation.settings,
            from_release_id=release.id,
        )
        service.price(self.session, federation.coordinator, run.id)
        service.accept_price(
            self.session, run.id, version=run.version, price=price, start_adapter_sha256="c" * 64, actor="j"
        )
        return service.start(self.session, federation.coordinator, run.id, region=None)


@pytest.fixture
def publisher(api: TestClient, session: Session, settings: Settings) -> Publisher:
    ensure_signing_keys(session, VAULT)
    return Publisher(api, Federation(session, settings, epsilon=20.0, delta=1e-4))


@pytest.fixture
def viewer(publisher: Publisher) -> Caller:
    return add_caller(publisher.session, Role.VIEWER, publisher.federation.organisation.id)


def certificate_of(publisher: Publisher, viewer: Caller, release: Release) -> dict[str, Any]:
    publisher.session.expire(release)
    answer = publisher.api.get(f"/v1/releases/{release.id}/certificate", headers=viewer.headers)
    found: dict[str, Any] = answer.json()
    return found


def jwks_of(publisher: Publisher) -> dict[str, Any]:
    found: dict[str, Any] = publisher.api.get("/.well-known/jwks.json").json()
    return found


def test_a_certificate_holds_under_the_published_keys_and_no_member_can_be_changed(
    publisher: Publisher, viewer: Caller
) -> None:
    release = publisher.publish(publisher.federation.running())
    certificate = certificate_of(publisher, viewer, release)
    jwks = jwks_of(publisher)
    assert verify(certificate, jwks) == certificate["signature"]["kid"]
    for path, value in [
        (("privacy", "this_run", "epsilon"), 0.1),
        (("privacy", "unit"), "person"),
        (("privacy", "basis"), "attested"),
        (("release", "adapter_sha256"), "0" * 64),
        (("manifest_sha256",), "0" * 64),
        (("signature", "value"), "A" * 86),
        (("signature", "kid"), "unknown"),
        (("signature", "alg"), "none"),
        (("version",), 1),
    ]:
        forged = copy.deepcopy(certificate)
        target = forged
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value
        with pytest.raises(CertificateInvalid):
            verify(forged, jwks)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (("privacy", "this_run", "epsilon"), "/privacy/this_run/epsilon"),
        (("ledger", "heads_sha256"), "/ledger/heads_sha256"),
        (("release", "parents"), "/release/parents"),
        (("previous",), "/previous"),
        (("release", "base_model", "weights_sha256"), "/release/base_model/weights_sha256"),
    ],
)
def test_a_changed_number_head_or_lineage_is_named_and_cannot_be_signed_again(
    publisher: Publisher, viewer: Caller, path: tuple[str, ...], pointer: str
) -> None:
    certificate = certificate_of(publisher, viewer, publisher.publish(publisher.federation.running()))
    target = certificate
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = "another"
    with pytest.raises(MemberChanged) as caught:
        verify(certificate, jwks_of(publisher))
    assert caught.value.pointer == pointer
    content = {name: member for name, member in certificate.items() if name != "signature"}
    certificate["signature"]["members"] = member_digests(content)
    with pytest.raises(CertificateInvalid, match="signature does not hold"):
        verify(certificate, jwks_of(publisher))


@pytest.mark.parametrize("signature", [None, "text", {}, {"alg": "EdDSA", "kid": 1, "value": "x"}])
def test_a_certificate_without_a_usable_signature_does_not_hold(signature: object) -> None:
    with pytest.raises(CertificateInvalid):
        verify({"version": 4, "signature": signature}, {"keys": []})


@pytest.mark.parametrize(
    "key",
    [
        {"kid": "k", "kty": "RSA", "n": "AA"},
        {"kid": "k", "kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kid": "k", "kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        {"kid": "k", "kty": "OKP", "crv": "Ed25519", "x": "!"},
        "text",
    ],
)
def test_a_published_key_of_another_kind_verifies_nothing(key: object) -> None:
    content = {"version": 4}
    signature = {"alg": "EdDSA", "kid": "k", "members": member_digests(content), "value": "A" * 86}
    with pytest.raises(CertificateInvalid):
        verify(content | {"signature": signature}, {"keys": [key]})


def test_every_epsilon_stands_beside_what_it_depends_on(publisher: Publisher, viewer: Caller) -> None:
    run = publisher.federation.running()
    certificate = certificate_of(publisher, viewer, publisher.publish(run))
    privacy = certificate["privacy"]
    assert certificate["manifest_sha256"] == run.manifest_sha256
    assert privacy["this_run"] == {
        "epsilon": 3.9,
        "delta": 1e-5,
        "accountant": PRICE["accountant"],
        "covers": "all 2 rounds, as committed before the first of them",
    }
    assert (privacy["unit"], privacy["relation"], privacy["trust"]) == ("example", "zero_out", "local")
    assert (privacy["clip_norm"], privacy["noise_multiplier"], privacy["steps"]) == (1.0, 1.2345, 4)
    assert privacy["examples"] == {"kind": "poisson", "rate": 0.1}
    assert privacy["cohort"] == {"kind": "everyone"}
    assert "not attested" in privacy["basis"]
    assert privacy["adversary"]
    assert any("person" in line for line in privacy["not_claimed"])


def test_the_first_release_already_claims_the_whole_schedule(publisher: Publisher, viewer: Caller) -> None:
    run = publisher.federation.running()
    first = certificate_of(publisher, viewer, publisher.publish(run))
    second = certificate_of(publisher, viewer, publisher.publish(run, 2))
    assert first["privacy"]["this_run"]["epsilon"] == second["privacy"]["this_run"]["epsilon"] == 3.9
    assert (first["release"]["rounds_aggregated"], second["release"]["rounds_aggregated"]) == ([1], [1, 2])


def test_the_populations_claim_is_the_largest_sum_of_any_of_its_accounts(
    publisher: Publisher, viewer: Caller
) -> None:
    publisher.federation.running()
    run = publisher.federation.running()
    population = certificate_of(publisher, viewer, publisher.publish(run))["privacy"]["population"]
    assert (population["claimed"], population["epsilon"], population["delta"]) == (True, 7.8, 2e-5)
    assert (population["unit"], population["relation"], population["trusts"]) == (
        "example",
        "zero_out",
        ["local"],
    )
    assert "sees every update" in population["adversary"]
    assert "(7.8, 2e-05)-differential privacy of one example in one data set" in population["statement"]


def test_an_entry_that_does_not_say_what_its_run_protects_takes_the_populations_claim_away(
    publisher: Publisher, viewer: Caller
) -> None:
    run = publisher.federation.running()
    account_id = account_of_client(publisher.session, publisher.federation.clients[0].id).id
    ledger.reserve(
        publisher.session, account_id, ref="run:old", amount=1, delta_amount=0, event={}, actor="test"
    )
    population = certificate_of(publisher, viewer, publisher.publish(run))["privacy"]["population"]
    assert set(population) == {"claimed", "statement"}
    assert population["claimed"] is False


def test_an_aborted_round_is_not_among_the_aggregated(publisher: Publisher, viewer: Caller) -> None:
    federation, session = publisher.federation, publisher.session
    run = federation.running()
    lifecycle.abort(session, federation.round_of(run).id, code="c", reason="r", actor="test")
    service.after_abort(session, run.id, code="c", reason="r", actor="test")
    service.resume(session, federation.coordinator, run.id, region=None)
    certificate = certificate_of(publisher, viewer, publisher.publish(run, 2))
    assert certificate["release"]["rounds_aggregated"] == [2]


def open_run(publisher: Publisher) -> Run:
    return publisher.federation.running(price=NOTHING, privacy=OPEN_PRIVACY)


def test_a_release_without_privacy_says_so_and_carries_no_number(
    publisher: Publisher, viewer: Caller
) -> None:
    release = publisher.publish(open_run(publisher))
    privacy = certificate_of(publisher, viewer, release)["privacy"]
    assert set(privacy) == {"claimed", "trust", "statement"}
    assert (privacy["claimed"], privacy["trust"]) == (False, "none")
    shown = publisher.api.get(f"/v1/releases/{release.id}", headers=viewer.headers).json()
    assert (shown["privacy_claimed"], shown["epsilon"]) == (False, None)


def test_the_populations_delta_is_the_largest_of_any_account_wherever_the_largest_epsilon_is(
    publisher: Publisher, viewer: Caller
) -> None:
    run = publisher.federation.running()
    session, other = publisher.session, publisher.federation.clients[1]
    event = {"unit": "example", "relation": "zero_out", "trust": "local"}
    more = {"ref": "run:of another", "event": event, "actor": "test"}
    of_first = account_of_client(session, publisher.federation.clients[0].id).id
    ledger.reserve(session, of_first, amount=1_000_000_000, delta_amount=0, **more)
    of_other = account_of_client(session, other.id).id
    ledger.reserve(session, of_other, amount=0, delta_amount=4 * 10**13, **more)
    population = certificate_of(publisher, viewer, publisher.publish(run))["privacy"]["population"]
    assert (population["epsilon"], population["delta"]) == (4.9, 5e-5)


def test_a_run_without_privacy_on_the_same_data_takes_the_populations_claim_away(
    publisher: Publisher, viewer: Caller
) -> None:
    open_run(publisher)
    privacy = certificate_of(publisher, viewer, publisher.publish(publisher.federation.running()))["privacy"]
    assert (privacy["claimed"], privacy["population"]["claimed"]) == (True, False)
    assert "epsilon" not in privacy["population"]


def test_a_private_run_that_starts_from_an_open_one_of_the_same_clients_claims_nothing(
    publisher: Publisher, viewer: Caller
) -> None:
    run = publisher.continuing(publisher.publish(open_run(publisher)))
    privacy = certificate_of(publisher, viewer, publisher.publish(run))["privacy"]
    assert privacy["claimed"] is False


def refute(session: Session, run: Run) -> None:
    report = {
        "claimed_epsilon": 3.9,
        "claimed_delta": 1e-5,
        "lower_bound": 5.0,
        "method": "m",
        "refuted": True,
    }
    assert run.manifest_sha256 is not None
    audits.record(
        session,
        organisation_id=run.organisation_id,
        run_id=run.id,
        manifest_sha256=run.manifest_sha256,
        report=report,
    )


def test_the_epsilon_of_a_run_that_an_audit_refuted_is_in_no_later_claim(
    publisher: Publisher, viewer: Caller
) -> None:
    refuted = publisher.federation.running()
    parent = publisher.publish(refuted)
    refute(publisher.session, refuted)
    beside = certificate_of(publisher, viewer, publisher.publish(publisher.federation.running()))["privacy"]
    assert (beside["claimed"], beside["population"]["claimed"]) == (True, False)
    assert "an audit refuted" in beside["population"]["statement"]
    run = publisher.continuing(parent)
    after = certificate_of(publisher, viewer, publisher.publish(run))["privacy"]
    assert after["claimed"] is False
    assert "an audit refuted" in after["statement"]


def test_enrolling_a_data_set_again_does_not_hide_its_open_run_from_later_certificates(
    publisher: Publisher, viewer: Caller
) -> None:
    session, federation = publisher.session, publisher.federation
    open_run(publisher)
    for number, former in enumerate(federation.clients):
        population = account_of_client(session, former.id).population
        former.state = ClientState.SUSPENDED
        heir = build_client(session, federation.organisation)
        ledger.open_account(
            session,
            organisation_id=federation.organisation.id,
            client_id=heir.id,
            population=population,
            kind="basic",
            epsilon=20.0,
            delta=1e-4,
            actor="test",
        )
        federation.clients[number] = heir
    privacy = certificate_of(publisher, viewer, publisher.publish(federation.running()))["privacy"]
    assert privacy["population"]["claimed"] is False


def test_a_run_that_starts_from_a_private_release_names_it_and_its_cost(
    publisher: Publisher, viewer: Caller
) -> None:
    parent = publisher.publish(publisher.federation.running())
    run = publisher.continuing(parent)
    release = publisher.publish(run)
    certificate = certificate_of(publisher, viewer, release)
    assert release.parent_id == parent.id
    assert certificate["release"]["parents"] == [str(parent.id)]
    (start,) = certificate["privacy"]["starts_from"]
    assert (start["epsilon"], start["delta"], start["same_clients"]) == (3.9, 1e-5, True)
    assert certificate["privacy"]["population"]["epsilon"] == 7.8


def test_a_plan_of_another_shape_cannot_continue_a_release(publisher: Publisher) -> None:
    parent = publisher.publish(publisher.federation.running())
    with pytest.raises(service.LineageMismatch):
        publisher.continuing(parent, lora={"seed": 2})


def test_a_release_of_a_plan_from_before_a_setting_existed_can_be_continued(publisher: Publisher) -> None:
    federation = publisher.federation
    run = federation.priced()
    older = copy.deepcopy(run.manifest)
    del older["lora"]["sketch_width"]
    run.manifest = older
    parent = publisher.publish(service.start(publisher.session, federation.coordinator, run.id, region=None))
    assert "sketch_width" not in run.manifest["lora"]
    assert publisher.continuing(parent).from_release_id == parent.id


def test_recording_a_round_twice_is_one_release(publisher: Publisher) -> None:
    run = publisher.federation.running()
    first = publisher.publish(run)
    again = release_round(
        publisher.session,
        first.round_id,
        adapter_sha256="0" * 64,
        tensors=TENSORS,
        size_bytes=1,
        adapter_config={},
        sign=publisher.api.app.state.keys.sign,
        issuer="x",
    )
    assert again.id == first.id
    assert publisher.session.scalar(sa.select(sa.func.count()).select_from(Release)) == 1


def test_the_parts_of_a_release_are_served_with_etags(publisher: Publisher, viewer: Caller) -> None:
    release = publisher.publish(publisher.federation.running(), content=b"x" * 300_000)
    shown = publisher.api.get(f"/v1/releases/{release.id}", headers=viewer.headers).json()
    adapter = publisher.api.get(shown["links"]["adapter"], headers=viewer.headers)
    assert (adapter.content, adapter.headers["etag"]) == (b"x" * 300_000, f'"{release.adapter_sha256}"')
    assert publisher.api.get(shown["links"]["config"], headers=viewer.headers).json() == CONFIG
    for link in shown["links"].values():
        tag = publisher.api.get(link, headers=viewer.headers).headers["etag"]
        again = publisher.api.get(link, headers=viewer.headers | {"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)


def test_releases_are_listed_newest_first_by_run(publisher: Publisher, viewer: Caller) -> None:
    run = publisher.federation.running()
    first, second = publisher.publish(run), publisher.publish(run, 2)
    publisher.publish(publisher.federation.running())
    path = f"/v1/releases?run_id={run.id}"
    listed = publisher.api.get(path, headers=viewer.headers).json()["items"]
    assert [item["id"] for item in listed] == [str(second.id), str(first.id)]
    assert second.parent_id == first.id


def test_a_release_is_hidden_from_other_organisations_and_from_clients_that_were_not_asked(
    publisher: Publisher,
) -> None:
    session = publisher.session
    release = publisher.publish(publisher.federation.running())
    stranger = add_caller(session, Role.VIEWER)
    outsider = client_headers(publisher.api.app, principal_of(build_client(session)))
    own = client_headers(publisher.api.app, publisher.federation.principal())
    for part in ("", "/adapter", "/config", "/certificate"):
        path = f"/v1/releases/{release.id}{part}"
        assert publisher.api.get(path, headers=stranger.headers).status_code == 404
        assert publisher.api.get(path, headers=outsider).status_code == 404
        assert publisher.api.get(path, headers=own).status_code == 200
    assert publisher.api.get(f"/v1/releases/{new_id()}", headers=own).status_code == 404
