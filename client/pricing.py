"""What a run costs this data set, computed by the client from the manifest's noise.

No price that a server names is used.

Under `local` the steps are the client's own noised steps and the sampling is that of its records or
persons. Under `central` the steps are the rounds and the sampling is that of the clients.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from client.amounts import delta_cost, epsilon_cost
from client.errors import ClientError
from client.i18n import _
from client.ledger import Terms
from client.wire import FrozenManifest, Manifest

if TYPE_CHECKING:
    from engines.privacy.gaussian_run import GaussianRun

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
        epsilons = _epsilons(_schedule(manifest), rounds=trained[-1], delta=given(manifest.privacy.delta))
    if epsilons[-1] > target:
        raise ClientError(
            "noise_too_small",
            _("the manifest claims epsilon {claimed}; its noise gives {computed}: the run is refused"),
            claimed=f"{target:g}",
            computed=f"{epsilons[-1]:.4f}",
        )
    return tuple(epsilon_cost(epsilons[number - 1]) for number in trained)


def _schedule(manifest: Manifest) -> GaussianRun:
    """What the manifest's noise is, read as by everybody who prices it."""
    from engines.privacy.schedule import schedule_of  # noqa: PLC0415  (seconds to import)

    privacy = manifest.privacy
    given(privacy.noise_multiplier)
    try:
        return schedule_of(privacy.model_dump() | {"steps": manifest.steps, "canaries": privacy.canaries})
    except ValueError as error:
        raise _unpriced() from error


@lru_cache(maxsize=16)
def _epsilons(schedule: GaussianRun, *, rounds: int, delta: float) -> tuple[float, ...]:
    from engines.privacy import accounting  # noqa: PLC0415  (seconds to import)

    try:
        return accounting.epsilon_by_round(schedule, rounds=rounds, delta=delta)
    except (accounting.AccountingFailed, ValueError) as error:
        raise _unpriced() from error


def _unpriced() -> ClientError:
    return ClientError("cannot_price", _("this plan has no price that can be trusted: it is refused"))
