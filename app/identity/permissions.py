"""The whole role-based access table: who may do what, and on whose objects. There is no other place."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from app.core.errors import Forbidden
from app.core.i18n import _
from app.identity.roles import Principal, Role


class Scope(StrEnum):
    """Whose objects a permission reaches. What lies outside is answered as absent."""

    OWN = "own"  # the caller's own: a member's keys, a client's assignments
    ORGANISATION = "organisation"  # those of the caller's organisation
    FEDERATION = "federation"  # all


_FEDERATION, _ORGANISATION, _OWN = Scope.FEDERATION, Scope.ORGANISATION, Scope.OWN
_STAFF = (Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, Role.VIEWER)


def _row(*in_organisation: Role, own: tuple[Role, ...] = ()) -> Mapping[Role, Scope]:
    """One permission: administrators reach the federation, `in_organisation` theirs, `own` themselves."""
    row = {Role.ADMIN: _FEDERATION}
    row.update(dict.fromkeys(in_organisation, _ORGANISATION))
    row.update(dict.fromkeys(own, _OWN))
    return MappingProxyType(row)


_CLIENT_ONLY: Mapping[Role, Scope] = MappingProxyType({Role.CLIENT: _OWN})

PERMISSIONS: Mapping[str, Mapping[Role, Scope]] = MappingProxyType(
    {
        "organisations:create": _row(),
        "organisations:read": _row(*_STAFF),
        "organisations:limit": _row(Role.PRIVACY_OFFICER),
        "members:create": _row(),
        "members:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "api_keys:create": _row(own=_STAFF),
        "api_keys:read": _row(own=_STAFF),
        "api_keys:revoke": _row(own=_STAFF),
        "enrolments:create": _row(Role.COORDINATOR),
        "enrolments:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "clients:read": _row(*_STAFF, own=(Role.CLIENT,)),
        "clients:suspend": _row(Role.COORDINATOR),
        "runs:create": _row(Role.COORDINATOR),
        "runs:read": _row(*_STAFF, own=(Role.CLIENT,)),
        "runs:price": _row(Role.COORDINATOR),
        "runs:start": _row(Role.COORDINATOR),
        "runs:control": _row(Role.COORDINATOR),
        "rounds:read": _row(*_STAFF, own=(Role.CLIENT,)),
        "rounds:seal": _row(Role.COORDINATOR),
        "rounds:abort": _row(Role.COORDINATOR),
        "evidence:read": _row(Role.COORDINATOR, Role.AUDITOR, own=(Role.CLIENT,)),
        "standings:read": _row(Role.COORDINATOR, Role.AUDITOR),
        "standings:reverse": _row(),
        "assignments:read": _CLIENT_ONLY,
        "adapters:read": _row(own=(Role.CLIENT,)),
        "updates:create": _CLIENT_ONLY,
        "updates:read": _row(Role.COORDINATOR, Role.AUDITOR, own=(Role.CLIENT,)),
        "releases:read": _row(*_STAFF, own=(Role.CLIENT,)),
        "budgets:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, own=(Role.CLIENT,)),
        "budgets:grant": _row(Role.PRIVACY_OFFICER),
        "budgets:recheck": _row(),
        "violations:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "audit:read": _row(Role.PRIVACY_OFFICER, Role.AUDITOR, own=(Role.CLIENT,)),
        "audit:export": _row(Role.AUDITOR),
        "jobs:read": _row(),
        "jobs:retry": _row(),
        "metrics:read": _row(),
    }
)


def scope_of(principal: Principal, permission: str) -> Scope:
    """Return how far `permission` reaches for this caller.

    Raises Forbidden when the role does not hold it, and KeyError for a permission that does not exist.
    """
    scope = PERMISSIONS[permission].get(principal.role)
    if scope is None:
        raise Forbidden(_("the permission {permission} is not part of your role"), permission=permission)
    return scope
