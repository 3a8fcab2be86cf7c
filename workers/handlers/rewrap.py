"""After a rotation: keys of objects are wrapped under their tenants' new keys, until none is left."""

from __future__ import annotations

from app.custody import rotation
from app.custody.blobs import root_of
from app.jobs import leases
from app.jobs.leases import Claim
from workers.context import Context

_MOST_BATCHES = 50
"""A job ends within its lease; the next one goes on."""


def run(context: Context, claim: Claim) -> None:
    """Wrap some keys anew; where there was no rotation there is nothing to do."""
    root = root_of(context.settings)
    for _batch in range(_MOST_BATCHES):
        with context.database.run_tx("rewrap") as session:
            leases.fence(session, claim)
            if not rotation.rewrap(session, root):
                break
