"""What a data set's ledger says, and which entries may follow. Pure: no files, no clock, no network.

One data set, run and round number has at most one update that is ever sent. `apply` is the only way a
book changes, for entries read back as for entries to be written, so an illegal line in a file is refused
like an illegal request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Illegal(Exception):
    """An entry that may not follow; `code` and the text are for a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Stage(StrEnum):
    """How far the update of one round is."""

    PREPARED = "prepared"  # whole on the disk, nothing sent: may still be discarded and trained again
    SPENT = "spent"  # a byte of it may have left: only these bytes, for ever
    SENT = "sent"  # the server gave a receipt for these bytes


@dataclass(frozen=True)
class Contribution:
    """The one update of a round."""

    round_id: str
    update_id: str
    sha256: str
    size_bytes: int
    adapter_sha256: str
    stage: Stage
    receipt: dict[str, Any] | None = None


@dataclass(frozen=True)
class Commitment:
    """A run that this data set takes part in, priced as a whole when it was first seen."""

    run_id: str
    client_id: str
    server: str
    manifest_sha256: str
    trust: str
    epsilon: int
    """Nano-epsilon of the whole schedule; 0 where nothing is promised (`trust` none)."""
    delta: int
    epsilon_by_round: tuple[int, ...]
    """Nano-epsilon after each round, cumulative; of a buffered run, after each of this client's updates."""
    at: str
    unit: str = "example"
    """What the epsilon protects; entries older than this field are of runs that protected one example."""
    rounds: int = 0
    """Of a buffered run, how many rounds it has, of which this client is in some; else 0."""
    void: bool = False
    contributions: dict[int, Contribution] = field(default_factory=dict)

    def is_the_same(self, *, manifest_sha256: str, client_id: str) -> bool:
        """Say whether a run that asks now is this one, and may go on."""
        return (self.manifest_sha256, self.client_id, self.void) == (manifest_sha256, client_id, False)

    @property
    def is_buffered(self) -> bool:
        """Whether the run's price is for a number of updates instead of for all of its rounds."""
        return self.rounds > 0

    @property
    def rounds_sent(self) -> int:
        """The highest round of which a byte may have left; of a buffered run, how many those are."""
        gone = [number for number, one in self.contributions.items() if one.stage is not Stage.PREPARED]
        return len(gone) if self.is_buffered else max(gone, default=0)

    @property
    def is_used_up(self) -> bool:
        """Whether a buffered run has had all the updates that it was priced for."""
        return self.is_buffered and self.rounds_sent >= len(self.epsilon_by_round)

    def epsilon_with(self, number: int) -> int:
        """Nano-epsilon of the schedule up to and with the update of one round."""
        part = number
        if self.is_buffered:
            part = 1 + sum(other < number for other in self.contributions)
        return self.epsilon_by_round[part - 1]

    @property
    def epsilon_spent(self) -> int:
        """Nano-epsilon of the schedule up to the last round of which a byte may have left.

        Under `central` it is the whole schedule as soon as the run is joined: its price holds for those who
        do not know in which rounds this client was, so no round is cheaper than another.
        """
        if self.trust == "central":
            return 0 if self.void else self.epsilon
        sent = self.rounds_sent
        return self.epsilon_by_round[sent - 1] if sent and self.epsilon_by_round else 0

    @property
    def is_private(self) -> bool:
        """Whether the run promises an epsilon at all."""
        return self.trust != "none"


def _unseen(run_id: str, *, at: str) -> Commitment:
    """A run that was never accepted: nothing of it was committed, and once void it never will be."""
    return Commitment(
        run_id=run_id,
        client_id="",
        server="",
        manifest_sha256="",
        trust="none",
        epsilon=0,
        delta=0,
        epsilon_by_round=(),
        at=at,
    )


@dataclass
class Book:
    """Every commitment of one data set."""

    dataset: str = ""
    commitments: dict[str, Commitment] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    """SHA-256 of every file that was enrolled as this data set."""
    inode: int | None = None
    """Number of the one file that is this ledger; None in a ledger from before ledgers were bound."""

    @property
    def epsilon_committed(self) -> int:
        """Nano-epsilon of all runs that were not voided, each with its whole schedule."""
        return sum(run.epsilon for run in self.commitments.values() if not run.void)

    @property
    def delta_committed(self) -> int:
        """Delta (1e-18) of all runs that were not voided."""
        return sum(run.delta for run in self.commitments.values() if not run.void)

    @property
    def epsilon_spent(self) -> int:
        """Nano-epsilon of what may have left so far."""
        return sum(run.epsilon_spent for run in self.commitments.values())

    def epsilon_committed_since(self, at: str) -> int:
        """Nano-epsilon of the runs committed at or after an RFC 3339 time in UTC."""
        return sum(run.epsilon for run in self.commitments.values() if not run.void and run.at >= at)

    def receipts_of(self, *, server: str, client_id: str) -> list[dict[str, Any]]:
        """Every receipt that a server gave this client for the data set, in no certain order."""
        return [
            one.receipt
            for run in self.commitments.values()
            if (run.server, run.client_id) == (server, client_id)
            for one in run.contributions.values()
            if one.receipt is not None
        ]

    def contribution(self, run_id: str, number: int) -> Contribution | None:
        """Return the update of a round, if one is prepared or gone."""
        run = self.commitments.get(run_id)
        return run.contributions.get(number) if run else None

    def apply(self, kind: str, fields: dict[str, Any], *, at: str) -> None:
        """Take one entry into account, or raise Illegal and change nothing."""
        try:
            verb = _VERBS[kind]
        except KeyError as error:
            raise Illegal("ledger_damaged", f"unknown entry {kind}") from error
        verb(self, fields, at)

    def _open(self, fields: dict[str, Any], _at: str) -> None:
        if self.dataset:
            raise Illegal("ledger_damaged", "opened twice")
        self.dataset = str(fields["dataset"])

    def _bound(self, fields: dict[str, Any], _at: str) -> None:
        self.inode = int(fields["inode"])

    def _data(self, fields: dict[str, Any], _at: str) -> None:
        self.digests.add(str(fields["sha256"]))

    def _commit(self, fields: dict[str, Any], at: str) -> None:
        run = Commitment(**{**fields, "epsilon_by_round": tuple(fields["epsilon_by_round"]), "at": at})
        if run.run_id in self.commitments:
            raise Illegal("run_taken", "the run is committed already")
        if min(run.epsilon, run.delta, *run.epsilon_by_round, 0) < 0:
            raise Illegal("ledger_damaged", "a negative amount")
        self.commitments[run.run_id] = run

    def _prepared(self, fields: dict[str, Any], _at: str) -> None:
        run, number = self._run(fields), int(fields["number"])
        if run.void:
            raise Illegal("run_disclaimed", "it was declared that nothing is sent for this run")
        if number in run.contributions:
            raise Illegal("round_taken", "the round has an update already")
        priced = len(run.epsilon_by_round)
        if number < 1 or (priced and number > (run.rounds or priced)):
            raise Illegal("round_not_priced", "the round is not part of the priced schedule")
        if run.is_buffered and len(run.contributions) >= priced:
            raise Illegal("round_not_priced", "the run has as many updates as it was priced for")
        run.contributions[number] = Contribution(
            round_id=str(fields["round_id"]),
            update_id=str(fields["update_id"]),
            sha256=str(fields["sha256"]),
            size_bytes=int(fields["size_bytes"]),
            adapter_sha256=str(fields["adapter_sha256"]),
            stage=Stage.PREPARED,
        )

    def _discarded(self, fields: dict[str, Any], _at: str) -> None:
        run, number, one = self._existing(fields)
        if one.stage is not Stage.PREPARED:
            raise Illegal("round_taken", "a byte of this update may have left: it is never trained again")
        del run.contributions[number]

    def _spent(self, fields: dict[str, Any], _at: str) -> None:
        run, number, one = self._existing(fields)
        if run.void:
            raise Illegal("run_disclaimed", "it was declared that nothing is sent for this run")
        if one.stage is not Stage.PREPARED:
            raise Illegal("round_taken", "the round is spent already")
        run.contributions[number] = replace(one, stage=Stage.SPENT)

    def _readdressed(self, fields: dict[str, Any], _at: str) -> None:
        run, number, one = self._existing(fields)
        if one.adapter_sha256 != fields["adapter_sha256"]:
            raise Illegal("round_replayed", "the round was sent already, from another adapter")
        run.contributions[number] = replace(
            one, round_id=str(fields["round_id"]), update_id=str(fields["update_id"]), receipt=None
        )

    def _sent(self, fields: dict[str, Any], _at: str) -> None:
        run, number, one = self._existing(fields)
        if one.stage is Stage.PREPARED:
            raise Illegal("ledger_damaged", "a receipt for an update that was not spent")
        run.contributions[number] = replace(one, stage=Stage.SENT, receipt=dict(fields["receipt"]))

    def _void(self, fields: dict[str, Any], at: str) -> None:
        run_id = str(fields["run_id"])
        run = self.commitments.get(run_id) or _unseen(run_id, at=at)
        if run.rounds_sent:
            raise Illegal("already_sent", "an update of this run may have left: its cost stays")
        self.commitments[run.run_id] = replace(run, void=True)

    def _repaired(self, fields: dict[str, Any], _at: str) -> None:
        """A torn last line was cut; nothing follows from it."""

    def _run(self, fields: dict[str, Any]) -> Commitment:
        run = self.commitments.get(str(fields["run_id"]))
        if run is None:
            raise Illegal("run_not_committed", "the run is not committed")
        return run

    def _existing(self, fields: dict[str, Any]) -> tuple[Commitment, int, Contribution]:
        run, number = self._run(fields), int(fields["number"])
        one = run.contributions.get(number)
        if one is None:
            raise Illegal("update_not_prepared", "the round has no update")
        if one.sha256 != fields["sha256"]:
            raise Illegal("update_changed", "the round has an update with other bytes")
        return run, number, one


_VERBS = {
    "open": Book._open,
    "bound": Book._bound,
    "data": Book._data,
    "commit": Book._commit,
    "prepared": Book._prepared,
    "discarded": Book._discarded,
    "spent": Book._spent,
    "readdressed": Book._readdressed,
    "sent": Book._sent,
    "void": Book._void,
    "repaired": Book._repaired,
}
