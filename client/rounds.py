"""One round: fetch, train, submit; three functions with a folder between them.

The order of writes is what keeps the promise that a data set sends at most one update a round, wherever
the process is killed: update file, digest, ledger `prepared`, ledger `spent`, first byte, receipt. Each
function may be run again at any time and goes on from what is on the disk.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from client.accepting import accept
from client.buffering import aimed
from client.declaring import declaration
from client.durable import private_folder
from client.errors import ClientError, RoundMissed
from client.evidence import Witness, require_trusted, witnessed
from client.handing import adopted, hand_over, lost, prepared_of, replayed
from client.i18n import _
from client.ledger import Contribution, Stage
from client.pauses import pause_at
from client.profile import Profile, raw_public_key
from client.receipts import require_logged
from client.round_files import RoundFiles, Written, body_blocks
from client.session import ServerRefused, Session
from client.turns import Turn, forget_kept, keep, kept_before, kept_of, most_bytes, sent_and_kept, sent_shapes
from client.update_file import update_file
from client.wire import Assignment, FrozenManifest, Receipt, parse
from engines.lora.methods import TWO_TURNS, trains

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES = 1 << 16
_MAX_ADAPTER_BYTES = 1 << 32
"""More than any adapter; a manifest of absurd shapes does not fill the disk."""
OnStep = Callable[[int, int], None]
"""Called with local steps done and the number of all: constants of the manifest, nothing of the data."""


_Make = Callable[..., tuple[Turn, "dict[str, Tensor]"]]


class Trainer(Protocol):
    """Trains on a profile's data. The only thing here that sees any."""

    def train(
        self, profile: Profile, frozen: FrozenManifest, adapter: bytes, *, turn: Turn, on_step: OnStep
    ) -> dict[str, Tensor]:
        """Return the change of each tensor that this turn trains, noised as the manifest says."""


def fetch(
    profile: Profile, session: Session, assignment: Assignment, *, into: Path | None = None
) -> RoundFiles:
    """Judge a round's run, set its price aside in the ledger, and bring what training needs here."""
    run_id = str(assignment.run_id)
    require_trusted(profile)
    with witnessed(profile, run_id, assignment) as witness:
        require_logged(profile, session, witness)
        files = RoundFiles(into or profile.round_folder(run_id, assignment.number))
        raw = session.get(f"/v1/runs/{run_id}/manifest").content
        frozen = FrozenManifest(raw)
        witness.saw(manifest_sha256=frozen.sha256, privacy=frozen.values["privacy"])
        frozen.require(assignment.manifest_sha256)
        accept(profile, assignment, frozen)
        files.write_assignment(assignment, raw)
        if not is_unsent(profile, assignment) or files.holds_adapter():
            return files  # what is sent again is an update; what is here already is not brought again
        limit = min(_HEADER_BYTES + most_bytes(frozen.manifest), _MAX_ADAPTER_BYTES)
        content = session.download(f"/v1/rounds/{assignment.round_id}/adapter", limit_bytes=limit).content
        found = hashlib.sha256(content).hexdigest()
        witness.saw(adapter_sha256=found)
        if found != assignment.adapter_sha256:
            raise ClientError(
                "adapter_mismatch", _("the downloaded adapter is not the one that was announced")
            )
        files.write_adapter(content)
        return files


def is_unsent(profile: Profile, assignment: Assignment) -> bool:
    """Say whether no byte of an update for this round can have left."""
    known = profile.ledger.book().contribution(str(assignment.run_id), assignment.number)
    return known is None or known.stage is Stage.PREPARED


def train(profile: Profile, files: RoundFiles, trainer: Trainer, *, on_step: OnStep) -> Contribution:
    """Train the round's update and record it as prepared. Needs no network.

    An update of which no byte has left may be dropped and trained again with fresh randomness; after that
    this returns the one that exists, whatever happened to the server's answer.
    """
    profile.require_here()
    assignment, frozen = files.assignment(), files.manifest()
    accept(profile, assignment, frozen)
    if not profile.config.hands_over:
        return _finished(profile, files, trainer, own=files, on_step=on_step)
    own = RoundFiles(profile.round_folder(str(assignment.run_id), assignment.number))
    private_folder(own.folder)
    one = _finished(profile, files, trainer, own=own, on_step=on_step)
    hand_over(profile, files, own, one)
    return one


def _finished(
    profile: Profile, files: RoundFiles, trainer: Trainer, *, own: RoundFiles, on_step: OnStep
) -> Contribution:
    """Return the round's one update, trained now if there is none; its file is in `own`."""
    assignment, frozen = files.assignment(), files.manifest()
    run_id, number = str(assignment.run_id), assignment.number
    known = profile.ledger.book().contribution(run_id, number)
    if known is not None and known.stage is not Stage.PREPARED:
        return known
    if known is not None:
        if known.adapter_sha256 == assignment.adapter_sha256 and own.holds_update(known.sha256):
            return known
        profile.ledger.discard(run_id, number, sha256=known.sha256)
    forget_kept(own)
    make = _maker(frozen)
    try:
        turn, update = make(profile, files, trainer, own=own, on_step=on_step)
    except ClientError as error:
        if error.code == "update_unusable":
            _give_up(profile, assignment)
            raise RoundMissed(error.code, error.message, **error.members) from error
        raise
    require_wanted(update, sent_shapes(frozen.values, turn))
    content = update_file(update, wire_dtype=frozen.manifest.aggregation.wire_dtype)
    written = own.write_update(content, update_id=uuid4())
    own.write_declaration(declaration(profile, assignment, frozen, update_sha256=written.sha256))
    prepared = prepared_of(assignment, written)
    profile.ledger.prepare(run_id, number, prepared)
    pause_at("after_prepared")
    return prepared


def _maker(frozen: FrozenManifest) -> _Make:
    if frozen.manifest.training.control_variates != "none":
        return _corrected
    return _sketched if frozen.manifest.lora.method in TWO_TURNS else _trained


def _trained(
    profile: Profile, files: RoundFiles, trainer: Trainer, *, own: RoundFiles, on_step: OnStep
) -> tuple[Turn, dict[str, Tensor]]:
    """Train, put aside what this client keeps to itself, and return the rest."""
    assignment, frozen = files.assignment(), files.manifest()
    own_before = kept_before(profile, str(assignment.run_id), assignment.number)
    turn = Turn(assignment.number, assignment.rank, own_before)
    change = trainer.train(profile, frozen, files.adapter(), turn=turn, on_step=on_step)
    update, kept = sent_and_kept(change, sent_shapes(frozen.values, turn))
    if kept:
        keep(own, kept, before=turn.own)
    return turn, update


def _sketched(
    profile: Profile, files: RoundFiles, trainer: Trainer, *, own: RoundFiles, on_step: OnStep
) -> tuple[Turn, dict[str, Tensor]]:
    """Train and return a sketch of it, or in an even round what is still missing of the one before."""
    from client.sketching import first_message, second_message, trained_whole  # noqa: PLC0415  (torch)

    assignment, frozen = files.assignment(), files.manifest()
    turn = Turn(assignment.number, assignment.rank)
    if trains(frozen.manifest.lora.method, turn.number):
        change = trainer.train(profile, frozen, files.adapter(), turn=turn, on_step=on_step)
        whole = trained_whole(files.adapter(), change)
        keep(own, whole, before=None)
        return turn, first_message(frozen.values, turn, whole)
    kept = kept_of(profile, str(assignment.run_id), turn.number - 1)
    if kept is None:
        raise RoundMissed(
            "nothing_to_finish", _("nothing of this client is in the round before, which this one finishes")
        )
    return turn, second_message(frozen.values, turn, kept, files.adapter())


def _corrected(
    profile: Profile, files: RoundFiles, trainer: Trainer, *, own: RoundFiles, on_step: OnStep
) -> tuple[Turn, dict[str, Tensor]]:
    """Train with SCAFFOLD's correction, and put aside the c_i that holds if the round counts the update."""
    from client.variates import next_variate, variate_of  # noqa: PLC0415  (torch)

    assignment, frozen = files.assignment(), files.manifest()
    turn = Turn(assignment.number, assignment.rank, variate=variate_of(profile, assignment))
    update = trainer.train(profile, frozen, files.adapter(), turn=turn, on_step=on_step)
    keep(own, next_variate(frozen.manifest.training, turn, files.adapter(), update), before=None)
    return turn, update


def submit(profile: Profile, session: Session, files: RoundFiles) -> Receipt:
    """Send the prepared update: spent first, then the first byte; the same bytes after any doubt."""
    assignment = files.assignment()
    with witnessed(profile, str(assignment.run_id), assignment) as witness:
        return _submit(profile, session, files, witness=witness)


def _submit(profile: Profile, session: Session, files: RoundFiles, *, witness: Witness) -> Receipt:
    assignment = files.assignment()
    run_id, number = str(assignment.run_id), assignment.number
    known = profile.ledger.book().contribution(run_id, number) or adopted(profile, files)
    stated = files.handover()
    if stated is not None and stated.is_for(assignment) and stated.sha256 != known.sha256:
        raise ClientError(
            "update_changed",
            _("another update of this round is in the ledger than was handed over: nothing is sent"),
        )
    manifest = files.manifest().manifest
    if manifest.buffered is not None:
        known = aimed(profile, session, files, known)
    elif known.round_id != str(assignment.round_id):
        known = _readdressed(profile, assignment, known)
    if not files.holds_update(known.sha256) and known.stage is not Stage.PREPARED:
        raise lost(number)
    with files.open_update(known.sha256) as descriptor:
        if known.stage is Stage.PREPARED:
            profile.ledger.spend(run_id, number, sha256=known.sha256)
            pause_at("after_spent")
        noised = manifest.privacy.trust == "local"
        declared = files.declaration(key=raw_public_key(profile.key())) if noised else None
        base = None if manifest.buffered is None else number
        receipt = _send(session, known, descriptor, declared=declared, base=base)
    witness.saw_receipt(receipt, noised=noised)
    if (str(receipt.update_id), receipt.sha256) != (known.update_id, known.sha256):
        raise ClientError("receipt_mismatch", _("the server's receipt is for other bytes"))
    earlier = profile.ledger.book().receipts_of(
        server=profile.config.server, client_id=profile.config.client_id
    )
    profile.ledger.acknowledge(run_id, number, sha256=known.sha256, receipt=receipt.model_dump(mode="json"))
    pause_at("after_receipt")
    require_kept_account(receipt, earlier)
    return receipt


def require_kept_account(receipt: Receipt, earlier: list[dict[str, Any]]) -> None:
    """Refuse a server whose append-only account of this data set lost entries or was begun anew.

    Raises:
        ClientError: `ledger_reset`.
    """
    account = receipt.account
    if account is None:  # a run without a claim uses none
        return
    seen = [one["account"] for one in earlier if one.get("account") is not None]
    accounts = [one for one in seen if one["unit"] == account.unit]
    most = max((one["entries"] for one in accounts), default=0)
    is_another = bool(accounts) and str(account.id) not in {one["id"] for one in accounts}
    if is_another or account.entries < most:
        raise ClientError(
            "ledger_reset",
            _("the server's account of this data set had {most} entries and now is another or shorter one"),
            most=most,
        )


def require_wanted(update: dict[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an update that is not exactly the tensors that the manifest says are sent."""
    shapes = {name: tuple(tensor.shape) for name, tensor in update.items()}
    if shapes != dict(wanted) or any(str(tensor.dtype) != "torch.float32" for tensor in update.values()):
        raise ClientError("update_malformed", _("training did not make the tensors that the run wants"))


def _send(
    session: Session, one: Contribution, descriptor: int, *, declared: str | None, base: int | None
) -> Receipt:
    digest = base64.b64encode(bytes.fromhex(one.sha256)).decode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(one.size_bytes),
        "Content-Digest": f"sha-256=:{digest}:",
    }
    if declared is not None:
        headers["DPFL-Declaration"] = declared
    if base is not None:
        headers["DPFL-Base-Round"] = str(base)
    path = f"/v1/rounds/{one.round_id}/updates/{one.update_id}"
    try:
        reply = session.put_bytes(path, lambda: body_blocks(descriptor, one.size_bytes), headers=headers)
    except ServerRefused as error:
        if error.status in {404, 409}:
            raise RoundMissed(error.code, error.message, **error.members) from error
        raise
    return parse(Receipt, reply.json("receipt"), what="receipt")


def _readdressed(profile: Profile, assignment: Assignment, known: Contribution) -> Contribution:
    """Let the same bytes answer a round that was opened again, if it starts from the same adapter."""
    if known.adapter_sha256 != assignment.adapter_sha256:
        raise replayed()
    moved = replace(known, round_id=str(assignment.round_id), update_id=str(uuid4()), receipt=None)
    profile.ledger.readdress(str(assignment.run_id), assignment.number, moved)
    return moved


def _give_up(profile: Profile, assignment: Assignment) -> None:
    """Spend a round for nothing: to train again until a check passes is to choose among noised updates."""
    nothing = Written(update_id=uuid4(), sha256=hashlib.sha256(b"").hexdigest(), size_bytes=0)
    run_id, number = str(assignment.run_id), assignment.number
    profile.ledger.prepare(run_id, number, prepared_of(assignment, nothing))
    profile.ledger.spend(run_id, number, sha256=nothing.sha256)
