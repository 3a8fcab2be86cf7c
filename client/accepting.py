"""Accepting a run, once: judged by the data holder's policy, priced, committed in the data set's ledger.

Nothing that depends on the data is found out after the commitment: who stays away then would tell of them.
"""

from __future__ import annotations

from client.dataset import check_data
from client.errors import ClientError
from client.evidence import require_trusted, witnessed
from client.i18n import _
from client.ledger import Commitment, manifest_changed
from client.plan import TrainingPlan
from client.policy import judge
from client.pricing import terms_of
from client.profile import Profile
from client.session import ServerRefused, Session
from client.turns import require_planned
from client.wire import Assignment, FrozenManifest


def accept(profile: Profile, assignment: Assignment, frozen: FrozenManifest) -> Commitment:
    """Judge a run by the data holder's policy and commit its whole schedule; once per run, then free."""
    if assignment.rounds != frozen.manifest.rounds or assignment.number > frozen.manifest.rounds:
        raise ClientError("round_not_priced", _("the round is not part of the schedule that was priced"))
    require_planned(assignment, frozen.manifest)
    return _committed(profile, str(assignment.run_id), frozen)


def join(profile: Profile, session: Session, run_id: str) -> bool:
    """Commit a run under trust `central` before any of its rounds asks for this client.

    There the whole schedule is charged to every client of the run, drawn or not. A run of another trust
    is committed with its first round.

    Returns:
        False while the run has no manifest yet: it has not started.
    """
    try:
        raw = session.get(f"/v1/runs/{run_id}/manifest").content
    except ServerRefused as error:
        if error.status == 404:
            return False
        raise
    frozen = FrozenManifest(raw)
    if frozen.manifest.privacy.trust == "central":
        require_trusted(profile)
        with witnessed(profile, run_id) as witness:
            witness.saw(manifest_sha256=frozen.sha256, privacy=frozen.values["privacy"])
            _committed(profile, run_id, frozen)
    return True


def _committed(profile: Profile, run_id: str, frozen: FrozenManifest) -> Commitment:
    policy, config = profile.policy, profile.config
    book = profile.ledger.book()
    known = book.commitments.get(run_id)
    if known is not None and known.manifest_sha256 != frozen.sha256:
        raise manifest_changed(run_id)
    judge(frozen.manifest, policy)
    TrainingPlan.from_manifest(frozen.values)  # what cannot be trained sets nothing aside
    if config.data_sha256 not in book.digests:
        raise ClientError(
            "ledger_lost",
            _("the ledger in {path} was begun anew after this client enrolled: put the old one back"),
            path=str(profile.ledger.folder),
        )
    if known is not None and known.is_the_same(manifest_sha256=frozen.sha256, client_id=config.client_id):
        return known  # priced when it was committed
    if config.data:  # what the data can fail is found before anything is set aside
        check_data(profile.require_data(), policy)
    terms = terms_of(frozen, run_id=run_id, client_id=config.client_id, server=config.server)
    return profile.ledger.commit(terms, ceiling=policy.ceiling)
