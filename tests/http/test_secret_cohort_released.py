"""A secret cohort leaves no trace in what becomes of its rounds: states, charges, releases, certificates.

The same run lives several times, each time with another cohort, through the workers' own jobs. What anybody
is shown on the way is the same, but for new names, times, and what is made from fresh noise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.core.db import Database
from app.core.settings import Settings
from app.identity.roles import Role
from app.jobs.models import Job, JobState
from app.rounds.models import Round
from app.rounds.queries import rounds_of
from app.rounds.selection import Cohort
from app.runs import publication, rounds
from app.updates.models import Update
from tests.cohort_walk import Walk, walking
from workers.context import Context
from workers.handlers import validate
from workers.registry import HANDLERS
from workers.shell import run_job

Shown = dict[tuple[str, str, str], str]
"""What a viewer was shown under a path, at a point of a run's life."""

POINTS = ("noised", "finished")
"""The first round has its candidate and no release; both rounds are released."""
_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
_NONCE = re.compile(r'nonce\\":\\"[0-9a-f]{32}')
_SIGNATURE = re.compile(r'"value":"[A-Za-z0-9_-]{86}"')
_UNCOUNTED = re.compile(r"#|dpfl_http_request_seconds|dpfl_http_requests_created|.*get_metrics")


@dataclass
class Life:
    """What a run showed while it lived with one cohort."""

    shown: Shown = field(default_factory=dict)
    logged: list[Any] = field(default_factory=list)
    """By the gateway and the workers, but for the lookers' own requests."""
    counted: Counter[str] = field(default_factory=Counter)
    """By how much each of the gateway's metrics grew, but for the lookers' own requests."""

    def without(self, *viewers: str) -> Shown:
        """What the others were shown; the updates' own pages are for their owners alone."""
        hidden = {key for key in self.shown if key[1] in viewers or "/updates/" in key[2]}
        return {key: text for key, text in self.shown.items() if key not in hidden}


@dataclass
class Lives:
    """A started run that can be lived again and again from its first open round."""

    walk: Walk
    context: Context
    known: frozenset[str] = frozenset()
    """Ids and digests that are there before anybody is drawn, the same in every life."""

    def __post_init__(self) -> None:
        admin = {Role.ADMIN: self.walk.staff[Role.ADMIN]}
        before = " ".join(replace(self.walk, staff=admin).looked_at().values())
        self.known = frozenset(_ID.findall(before) + _DIGEST.findall(before))

    def lived(self, monkeypatch: pytest.MonkeyPatch, *cohort: int) -> Life:
        """Both rounds with this cohort, from open to released; afterwards it is as if it had never been."""
        life, first = Life(), self.walk.round
        drawn = Cohort(clients=[self.walk.client_ids[number] for number in cohort], canaries=[])
        with monkeypatch.context() as patch, self._undone():
            patch.setattr(validate, "reach", lambda point: self._reached(life, point))
            patch.setattr(rounds, "draw_cohort", lambda *_pool, **_plan: drawn)
            self.walk.draw(*cohort)
            before = self._counts()
            for _number in range(2):
                self._round(life, cohort)
            life.counted.update(self._counts())
            life.counted.subtract(before)
            self._look(life, "finished")
        self.walk.round = first
        life.logged.sort()
        return life

    @contextmanager
    def _undone(self) -> Iterator[None]:
        with self.walk.session.begin_nested() as nested:
            yield
            nested.rollback()
        self.walk.session.expire_all()
        self.walk.sent.clear()

    def _round(self, life: Life, cohort: tuple[int, ...]) -> None:
        """One round with this cohort, up to its release, its clean-up included."""
        session = self.walk.session
        self.walk.round = rounds_of(session, self.walk.run.id)[-1]
        with capture_logs(processors=[merge_contextvars]) as heard:
            for number in cohort:
                assert self.walk.put(number).status_code == 201
            self._work_off()
            session.execute(sa.update(Job).where(Job.kind == "purge").values(run_at=sa.func.now()))
            self._work_off()
        life.logged += [
            self._plain(str(sorted(line.items()))) for line in heard if line["event"] != "request"
        ]
        session.expire_all()
        assert self.walk.round.state == "published"

    def _work_off(self) -> None:
        """Do whatever is due, oldest first, as the workers do."""
        due = sa.select(Job.id).where(Job.state == JobState.QUEUED, Job.run_at <= sa.func.now())
        while (job_id := self.walk.session.scalar(due.order_by(Job.id).limit(1))) is not None:
            run_job(self.context, job_id, handlers=HANDLERS)

    def _reached(self, life: Life, point: str) -> None:
        if point == "validate.after_compute" and not life.shown:  # of the first round
            before = self._counts()
            with capture_logs():
                self._look(life, "noised")
            life.counted.update(before)
            life.counted.subtract(self._counts())

    def _look(self, life: Life, point: str) -> None:
        self.walk.session.expire_all()
        seen = self.walk.looked_at(member=0)
        self.walk.require_no_trace({key: text for key, text in seen.items() if "/updates/" not in key[1]})
        for (viewer, path), text in seen.items():
            key = point, viewer, self._plain(path)  # of several objects the same: theirs, in their order
            life.shown[key] = life.shown.get(key, "") + self._plain(text)

    def _plain(self, text: str) -> str:
        """A text with whatever is new in every life replaced by its kind."""
        text = _ID.sub(lambda found: found[0] if found[0] in self.known else "<id>", text)
        text = _DIGEST.sub(lambda found: found[0] if found[0] in self.known else "<digest>", text)
        text = _NONCE.sub("<nonce>", text)
        return _SIGNATURE.sub('"value":"<signature>"', _TIME.sub("<time>", text))

    def _counts(self) -> Counter[str]:
        headers = self.walk.staff[Role.ADMIN].headers
        lines = self.walk.api.get("/metrics", headers=headers).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not _UNCOUNTED.match(line))
        return Counter({name: int(float(value)) for name, value in pairs})


@pytest.fixture
def lives(api: TestClient, session: Session, settings: Settings, rolled_back: Database) -> Lives:
    return Lives(walking(api, session, settings, seal="quorum"), Context.open(settings, rolled_back))


def test_what_a_run_shows_until_its_last_release_is_the_same_whoever_was_drawn(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lives.lived(monkeypatch, 0)
    assert {key[0] for key in one.shown} == set(POINTS)
    walked = {key[2] for key in one.shown if key[:2] == ("finished", "admin")}
    for path in ("releases/<id>/certificate", "releases/<id>/adapter", "rounds/<id>/evidence"):
        assert f"/v1/{path}" in walked
    many = lives.lived(monkeypatch, 0, 1, 2, 3, 4)
    assert many.without() == one.without()
    assert (many.logged, many.counted) == (one.logged, one.counted)
    none = lives.lived(monkeypatch)
    assert none.without("member") == one.without("member")
    assert (none.logged, none.counted) == (one.logged, one.counted)


def test_a_certificate_that_told_how_many_came_would_be_found(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(session: Session, run_id: UUID, *, up_to: int) -> list[int]:
        count = (
            sa.select(sa.func.count())
            .select_from(Update)
            .join(Round, Round.id == Update.round_id)
            .where(Round.run_id == run_id)
        )
        return [up_to, session.scalars(count).one()]

    monkeypatch.setattr(publication, "_aggregated", told)
    lives.walk.staff = {Role.ADMIN: lives.walk.staff[Role.ADMIN]}
    one, two = (lives.lived(monkeypatch, *cohort) for cohort in ((0,), (0, 1)))
    differ = {key for key, text in one.without().items() if two.shown[key] != text}
    assert {(point, path) for point, _viewer, path in differ} == {
        ("finished", "/v1/releases/<id>/certificate")
    }
