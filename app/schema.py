"""Imports every models module, so that metadata is whole; for Alembic, process starts and tests only."""

from app.audit import models as audit
from app.budget import models as budget
from app.core.db import Base
from app.custody import models as custody
from app.http import models as http
from app.identity import models as identity
from app.jobs import models as jobs
from app.policies import models as policies
from app.releases import models as releases
from app.rounds import models as rounds
from app.runs import models as runs
from app.security import models as security
from app.updates import models as updates

metadata = Base.metadata

__all__ = [
    "audit",
    "budget",
    "custody",
    "http",
    "identity",
    "jobs",
    "metadata",
    "policies",
    "releases",
    "rounds",
    "runs",
    "security",
    "updates",
]
