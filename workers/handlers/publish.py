"""A validated candidate becomes a release: the whole adapter file, PEFT configuration and certificate."""

from __future__ import annotations

from uuid import UUID

from app.budget.audits import is_refuted
from app.custody.blobs import TenantBlobs
from app.jobs import leases
from app.jobs.leases import Claim
from app.releases.tensors import tensor_digests
from app.rounds import lifecycle
from app.rounds.queries import get_round, lock_round
from app.rounds.states import RoundState
from app.runs.auditing import CLAIM_REFUTED, block
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.publication import release_round
from app.runs.queries import lock_run
from app.runs.service import after_publish
from engines.lora.adapter import peft_config
from engines.lora.states import released
from workers.checkpoints import reach
from workers.context import ACTOR, Context
from workers.layout import read_state, tensor_list
from workers.tensors import write_tensors


def run(context: Context, claim: Claim) -> None:
    """Publish one round and let its run go on; a round that is past it is left alone."""
    round_id = UUID(claim.payload["round_id"])
    reach("publish.before_read")
    with context.database.run_tx("publish read") as session:
        leases.fence(session, claim)
        row = get_round(session, round_id)
        if row.state is not RoundState.VALIDATING or row.candidate_sha256 is None:
            leases.finish(session, claim)
            return
        manifest = Manifest.model_validate(session.get_one(Run, row.run_id).manifest)
    blobs = context.blobs.of(row.organisation_id)
    digest, size_bytes, ranks = _write_whole(blobs, row.candidate_sha256, manifest)
    with blobs.open(digest).file() as file:
        tensors = tensor_digests(file)
    context.keys.current()  # loaded before the transaction, not in it
    reach("publish.after_blob")
    with context.database.run_tx("publish end") as session:
        leases.finish(session, claim)
        run_row = lock_run(session, row.run_id)  # always the run before its round
        if lock_round(session, round_id).state is not RoundState.VALIDATING:
            return  # aborted by hand meanwhile
        if is_refuted(
            session, row.run_id, run_row.manifest_sha256
        ):  # by an audit that somebody asked for meanwhile
            block(session, run_row, round_id, why=CLAIM_REFUTED, actor=ACTOR)
            return
        release_round(
            session,
            round_id,
            adapter_sha256=digest,
            tensors=tensors,
            size_bytes=size_bytes,
            adapter_config=peft_config(manifest.as_json(), ranks),
            sign=context.keys.sign,
            issuer=context.settings.public_url,
        )
        lifecycle.publish(session, round_id, actor=ACTOR)
        after_publish(session, row.run_id, actor=ACTOR, region=context.settings.declared_region)
    reach("publish.after_tx")


def _write_whole(
    blobs: TenantBlobs, candidate_sha256: str, manifest: Manifest
) -> tuple[str, int, dict[str, int]]:
    """Store the adapter as PEFT loads it on the base model as it is; and the ranks of its own that it has."""
    state = read_state(blobs, candidate_sha256, manifest)
    whole, ranks = released(state, tensors=tensor_list(manifest), lora=manifest.lora.model_dump(mode="json"))
    return (*write_tensors(blobs, whole), ranks)
