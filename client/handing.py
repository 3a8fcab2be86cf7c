"""An update that one machine trains and another one sends: handed over, and taken over.

The ledger beside the data decides what is trained, the ledger beside the network what is sent. Each is the
authority on its own half, so neither a folder that is carried twice nor one that is lost brings two different
updates of one round to a server.
"""

from __future__ import annotations

import os
from dataclasses import replace
from uuid import UUID

from client.accepting import accept
from client.errors import ClientError, RoundMissed
from client.i18n import _
from client.ledger import Contribution, Stage
from client.pauses import pause_at
from client.profile import Profile
from client.round_files import Handover, RoundFiles, Written
from client.wire import Assignment


def hand_over(profile: Profile, files: RoundFiles, own: RoundFiles, one: Contribution) -> None:
    """Count the round as spent, and only then put its update where another machine finds it.

    What has been handed over may be sent at any time, so it is never trained again; a folder that was lost
    on the way gets the same bytes.
    """
    assignment = files.assignment()
    run_id, number = str(assignment.run_id), assignment.number
    if one.adapter_sha256 != assignment.adapter_sha256:
        raise replayed()
    if one.stage is Stage.PREPARED:
        profile.ledger.spend(run_id, number, sha256=one.sha256)
        pause_at("after_spent")
    if not own.holds_update(one.sha256):
        raise lost(number)
    files.copy_update(own, one.sha256)
    files.write_handover(
        Handover(
            run_id=assignment.run_id,
            number=number,
            round_id=UUID(one.round_id),
            update_id=UUID(one.update_id),
            sha256=one.sha256,
            size_bytes=one.size_bytes,
            adapter_sha256=one.adapter_sha256,
            manifest_sha256=assignment.manifest_sha256,
        )
    )


def adopted(profile: Profile, files: RoundFiles) -> Contribution:
    """Take over the update that another machine trained, as prepared: this ledger decides what is sent.

    A second update of the round, from that machine or another, is refused by the ledger from now on.
    """
    assignment, frozen, stated = files.assignment(), files.manifest(), files.handover()
    run_id, number = str(assignment.run_id), assignment.number
    if stated is None:
        raise ClientError(
            "update_not_prepared", _("there is no finished update for this round: train it first")
        )
    if not stated.is_for(assignment):
        raise ClientError(
            "handover_mismatch",
            _("the update in {path} was trained for another round or from another adapter: nothing is sent"),
            path=str(files.folder),
        )
    known = profile.ledger.book().commitments.get(run_id)
    if known is None:
        raise ClientError(
            "run_not_committed", _("the run was never accepted for this data set: fetch it first")
        )
    accept(profile, assignment, frozen)
    with files.open_update(stated.sha256) as descriptor:
        size_bytes = os.fstat(descriptor).st_size
    if size_bytes != stated.size_bytes:
        raise ClientError(
            "update_changed", _("the update in {path} is not the one in the ledger"), path=str(files.folder)
        )
    written = Written(update_id=stated.update_id, sha256=stated.sha256, size_bytes=size_bytes)
    one = replace(prepared_of(assignment, written), round_id=str(stated.round_id))
    profile.ledger.prepare(run_id, number, one)
    pause_at("after_prepared")
    return one


def replayed() -> RoundMissed:
    """Refuse a round that the server plays again from another adapter."""
    return RoundMissed(
        "round_replayed",
        _("this round was sent already, trained from another adapter: nothing more is sent"),
    )


def lost(number: int) -> RoundMissed:
    """Give up a round whose update is spent and not on the disk any more."""
    return RoundMissed(
        "update_lost",
        _("the update of round {number} is gone or changed after its sending began: never trained again"),
        number=number,
    )


def prepared_of(assignment: Assignment, written: Written) -> Contribution:
    """Describe a finished update as the ledger takes it."""
    return Contribution(
        round_id=str(assignment.round_id),
        update_id=str(written.update_id),
        sha256=written.sha256,
        size_bytes=written.size_bytes,
        adapter_sha256=assignment.adapter_sha256,
        stage=Stage.PREPARED,
    )
