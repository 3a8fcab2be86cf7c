"""Which handler does which kind of job. Importing this imports torch: worker processes only."""

from __future__ import annotations

from workers.context import Handler
from workers.handlers import (
    aggregate,
    audit_privacy,
    deadline,
    price,
    publish,
    purge,
    recheck,
    rewrap,
    sweep,
    validate,
)

HANDLERS: dict[str, Handler] = {
    "price": price.run,
    "aggregate": aggregate.run,
    "validate": validate.run,
    "publish": publish.run,
    "deadline": deadline.run,
    "purge": purge.run,
    "sweep": sweep.run,
    "recheck": recheck.run,
    "rewrap": rewrap.run,
    "audit_privacy": audit_privacy.run,
}
