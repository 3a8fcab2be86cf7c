"""What a run costs this data set, computed by the client from the manifest's noise.

No price that a server names is used.

Under `local` the steps are the client's own noised steps and the sampling is that of its records or
persons. Under `central` the steps are the rounds and the sampling is that of the clients.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import lru_cache

from client.amounts import delta_cost, epsilon_cost
from client.errors import ClientError
from client.i18n import _
from client.ledger import Terms
from client.wire import FrozenManifest, Manifest, PoissonCohort

_PRICED_TRUSTS = ("local", "central")
_ONE_AT_A_TIME = threading.Lock()
"""A process that serves many clients prices a run once: the others wait and find it in the cache."""


def terms_of(frozen: FrozenManifest, *, run_id: str, client_id: str, server: str) -> Terms:
    """Price the whole schedule as this client computes it, from the manifest's noise and not its claim.

    Raises:
        ClientError: `plan_incomplete`, `cannot_price`, or `noise_too_small` when the noise gives more
            than the epsilon that the manifest claims.
    """
    manifest, privacy = frozen.manifest, frozen.manifest.privacy
    by_round: tuple[int, ...] = (0,) * manifest.participations
    delta = 0
    if privacy.trust in _PRICED_TRUSTS:
        by_round, delta = _priced(manifest), delta_cost(given(privacy.delta))
    return Terms(
        run_id=run_id,
        client_id=client_id,
        server=server,
        manifest_sha256=frozen.sha256,
        trust=privacy.trust,
        epsilon=by_round[-1],
        delta=delta,
        epsilon_by_round=by_round,
        unit=privacy.unit,
        rounds=0 if manifest.buffered is None else manifest.rounds,
    )


def given(value: float | None) -> float:
    """Return a number that the manifest has to name; raises `plan_incomplete`."""
    if value is None:
        raise ClientError("plan_incomplete", _("the manifest names no clip norm, noise, epsilon or delta"))
    return value


def _priced(manifest: Manifest) -> tuple[int, ...]:
    target = given(manifest.privacy.epsilon)
    with _ONE_AT_A_TIME:
        trained = manifest.trained_after
        epsilons = _epsilons(*_schedule(manifest), rounds=trained[-1], delta=given(manifest.privacy.delta))
    if epsilons[-1] > target:
        raise ClientError(
            "noise_too_small",
            _("the manifest claims epsilon {claimed}; its noise gives {computed}: the run is refused"),
            claimed=f"{target:g}",
            computed=f"{epsilons[-1]:.4f}",
        )
    return tuple(epsilon_cost(epsilons[number - 1]) for number in trained)


def _schedule(manifest: Manifest) -> tuple[float, float, int, str, tuple[int, int] | None]:
    """Noise multiplier, sampling rate, steps, relation, and the cohort's (places, cap) if it is cut."""
    privacy = manifest.privacy
    noise_multiplier = given(privacy.noise_multiplier)
    if privacy.trust == "local":
        return noise_multiplier, privacy.rate, manifest.steps, privacy.relation, None
    cohort = privacy.cohort
    if isinstance(cohort, PoissonCohort):
        capped = (cohort.n_max + privacy.canaries, cohort.cap)
        return noise_multiplier, cohort.rate, manifest.rounds, privacy.relation, capped
    return noise_multiplier, 1.0, manifest.rounds, privacy.relation, None


@lru_cache(maxsize=16)
def _epsilons(
    noise_multiplier: float,
    rate: float,
    steps: int,
    relation: str,
    capped: tuple[int, int] | None,
    *,
    rounds: int,
    delta: float,
) -> tuple[float, ...]:
    from engines.privacy import accounting  # noqa: PLC0415  (seconds to import)

    try:
        run = accounting.GaussianRun(
            noise_multiplier=noise_multiplier,
            sampling_rate=rate,
            steps=steps,
            relation=accounting.Relation(relation),
        )
        if capped is not None:
            population, cap = capped
            run = replace(run, capped=accounting.CappedPoisson(population=population, cap=cap))
        return accounting.epsilon_by_round(run, rounds=rounds, delta=delta)
    except (accounting.AccountingFailed, ValueError) as error:
        raise ClientError(
            "cannot_price", _("this plan has no price that can be trusted: it is refused")
        ) from error
