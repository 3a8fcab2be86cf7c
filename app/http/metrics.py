"""Prometheus metrics of one gateway process, and what the database says of jobs, rounds and runs.

Labels are operations, statuses and states: nothing that names a client or its data.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.budget.violations import counted
from app.core.db import Database
from app.http.deps import authenticated, public
from app.identity.permissions import scope_of
from app.jobs.models import Job
from app.rounds.models import Round
from app.runs.models import Run

router = APIRouter(tags=["operation"])
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


COHORT_OPERATIONS = frozenset(
    {
        "list_assignments",
        "get_round_adapter",
        "put_update",
        "get_update",
        "get_manifest",
        "get_run",  # asked by a client that waits: whoever is at work does not ask
        "create_token",  # renewed by whoever waits longest
        "get_audit_checkpoint",  # looked at before each round that a client fetches, and what follows from it
        "get_audit_keys",
        "get_consistency_proof",
        "get_audit_entry",
    }
)
"""What a client asks for more often, or less often, when it is in a round's cohort: all of its loop. Where
the federation allows runs with a secret cohort these are neither counted nor logged, whoever asks: the
difference of two counts would tell the cohort's size."""


class Metrics:
    """The instruments of one application; its own registry, so that several may live in one process."""

    def __init__(self, *, hidden: frozenset[str] = frozenset()) -> None:
        self.hidden = hidden
        """Operations of which nothing is noted."""
        self._seen: set[tuple[str, str]] = set()
        self.registry = CollectorRegistry()
        labels = ("operation", "status")
        self.requests = Counter("dpfl_http_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "dpfl_http_request_seconds",
            "Time until the answer was complete; long-polls included.",
            ("operation",),
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )

        self.rates_local = Gauge(
            "dpfl_rates_local",
            "1 while this process counts calls alone: Valkey does not answer, or none is named.",
            registry=self.registry,
        )

    def count(self, *, operation: str, status: int, seconds: float) -> None:
        """Note one answer, unless the operation is hidden."""
        if operation in self.hidden:
            return
        self.requests.labels(operation, str(status)).inc()
        self.seconds.labels(operation).observe(seconds)

    def may_tell(self, event: str, error: Exception) -> bool:
        """Say whether a failure of a hidden operation may be logged: the first of its kind in this process.

        The number of later lines would be a number of members; the first one is what an operator needs.
        """
        kind = (event, type(error).__name__)
        is_first = kind not in self._seen
        self._seen.add(kind)
        return is_first


class _Recorded(Collector):
    """How many jobs, rounds and runs are in each state, read at the moment of asking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """One gauge for each kind of thing."""
        with self._database.run_tx("metrics") as session:
            for name, model in (("jobs", Job), ("rounds", Round), ("runs", Run)):
                gauge = GaugeMetricFamily(f"dpfl_{name}", f"{name.capitalize()} by state.", labels=["state"])
                counts = sa.select(model.state, sa.func.count()).group_by(model.state)
                for state, count in session.execute(counts):
                    gauge.add_metric([state.value], count)
                yield gauge
            gauge = GaugeMetricFamily(
                "dpfl_privacy_violations", "Privacy violations by kind.", labels=["kind"]
            )
            for kind, count in counted(session).items():
                gauge.add_metric([kind.value], count)
            yield gauge


@router.get(
    "/metrics",
    dependencies=[public("readable from this host; from elsewhere it checks the permission itself")],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics(request: Request) -> Response:
    """Metrics in Prometheus' text form: from this host to anyone, from elsewhere to administrators."""
    if not _is_local(request):
        scope_of(authenticated(request), "metrics:read")
    recorded = CollectorRegistry()
    recorded.register(_Recorded(request.app.state.database))
    body = generate_latest(request.app.state.metrics.registry) + generate_latest(recorded)
    return Response(body, media_type=MEDIA_TYPE)


def _is_local(request: Request) -> bool:
    """A loopback peer that forwards for nobody else."""
    if {"forwarded", "x-forwarded-for", "x-real-ip"} & set(request.headers):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
