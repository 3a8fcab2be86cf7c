"""A buffered run: an update goes to whichever buffer is open when it is done, from whatever adapter it came.

For each adapter that was trained there is one update, ever. One of which no byte has left is dropped,
uncharged, when it has become too old; one that may have left is sent again as it is, and never another.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from client.asking import list_assignments
from client.book import Contribution, Stage
from client.errors import RoundMissed
from client.i18n import _
from client.profile import Profile
from client.round_files import RoundFiles
from client.session import Session
from client.wire import Assignment

TOO_STALE = "update_too_stale"
"""The server's refusal of an update whose adapter is too old: no later buffer takes it."""


def pending(profile: Profile, assignment: Assignment, *, given_up: Collection[str]) -> RoundFiles | None:
    """Return the folder of an update of an earlier adapter that is not sent yet, if it is not too old.

    Args:
        profile: whose ledger tells.
        assignment: the buffer that is open now.
        given_up: keys of updates (`key_of`) that no buffer takes any more.
    """
    run_id = str(assignment.run_id)
    run = profile.ledger.book().commitments.get(run_id)
    if run is None or not run.is_buffered:
        return None
    for number, one in sorted(run.contributions.items()):
        files = RoundFiles(profile.round_folder(run_id, number))
        if one.stage is Stage.SENT or number >= assignment.number or not files.holds_update(one.sha256):
            continue
        if key_of(files.assignment()) in given_up:
            continue
        if one.stage is Stage.PREPARED and _is_too_old(files, assignment):
            profile.ledger.discard(run_id, number, sha256=one.sha256)
            continue
        return files
    return None


def key_of(assignment: Assignment) -> str:
    """Name the one update that is trained from an assignment's adapter."""
    return f"{assignment.run_id}/{assignment.number}"


def aimed(profile: Profile, session: Session, files: RoundFiles, known: Contribution) -> Contribution:
    """Address an update to the buffer that is open now; its bytes and its id stay what they are.

    Raises RoundMissed before anything is spent, where no buffer takes it now.
    """
    if known.stage is Stage.SENT:
        return known
    assignment = files.assignment()
    run_id, number = str(assignment.run_id), assignment.number
    listed = list_assignments(session, wait_s=0.0)
    buffers = [one for one in listed if one.run_id == assignment.run_id]
    if not buffers and known.stage is Stage.PREPARED:
        raise RoundMissed("buffer_closed", _("no buffer takes an update now: send it when the next opens"))
    if buffers and known.stage is Stage.PREPARED and _is_too_old(files, buffers[0]):
        profile.ledger.discard(run_id, number, sha256=known.sha256)
        raise RoundMissed(TOO_STALE, _("the update has become too old and was dropped; nothing is charged"))
    round_id = str(buffers[0].round_id) if buffers else known.round_id  # it may be there already
    if round_id == known.round_id:
        return known
    moved = replace(known, round_id=round_id, receipt=None)
    profile.ledger.readdress(run_id, number, moved)
    return moved


def _is_too_old(files: RoundFiles, buffer: Assignment) -> bool:
    """Say whether a buffer may not take the update; rounds that were aborted count here as if released."""
    buffered = files.manifest().manifest.buffered
    return buffered is not None and buffer.number - files.assignment().number > buffered.staleness
