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
_STAFF = (Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, Role.DATA_STEWARD, Role.VIEWER)

_BUDGET_READERS = (Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, Role.DATA_STEWARD)


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
        "data_rules:read": _row(*_STAFF),
        "data_rules:set": _row(Role.DATA_STEWARD),
        "data_rules:try": _row(Role.PRIVACY_OFFICER, Role.DATA_STEWARD),
        "members:create": _row(),
        "members:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "members:update": _row(),
        "members:move": _row(),
        "account:read": _row(own=_STAFF),
        "account:secure": _row(own=_STAFF),
        "sessions:read": _row(own=_STAFF),
        "sessions:end": _row(own=_STAFF),
        "api_keys:create": _row(own=_STAFF),
        "api_keys:read": _row(own=_STAFF),
        "api_keys:revoke": _row(own=_STAFF),
        "signing_keys:rotate": _row(),
        "enrolments:create": _row(Role.COORDINATOR),
        "enrolments:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "clients:read": _row(*_STAFF, own=(Role.CLIENT,)),
        "clients:suspend": _row(Role.COORDINATOR),
        "certificates:create": _CLIENT_ONLY,
        "certificates:read": _row(Role.COORDINATOR, Role.AUDITOR, own=(Role.CLIENT,)),
        "certificates:revoke": _row(Role.COORDINATOR, own=(Role.CLIENT,)),
        "clients:approve": _row(Role.COORDINATOR),
        "clients:revoke": _row(Role.COORDINATOR),
        "clients:move": _row(),
        "clients:rotate_key": _CLIENT_ONLY,
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
        "budgets:read": _row(*_BUDGET_READERS, own=(Role.CLIENT,)),
        "budgets:grant": _row(Role.PRIVACY_OFFICER),
        "budgets:recheck": _row(),
        "violations:read": _row(Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR),
        "audit:read": _row(Role.PRIVACY_OFFICER, Role.AUDITOR, Role.DATA_STEWARD, own=(Role.CLIENT,)),
        "audit:export": _row(Role.AUDITOR),
        "security_events:read": _row(Role.PRIVACY_OFFICER, Role.AUDITOR),
        "security_events:resolve": _row(),
        "jobs:read": _row(),
        "jobs:retry": _row(),
        "metrics:read": _row(),
    }
)


_REACH = {Scope.OWN: 0, Scope.ORGANISATION: 1, Scope.FEDERATION: 2}


def scope_of(principal: Principal, permission: str) -> Scope:
    """Return how far `permission` reaches for this caller.

    Raises Forbidden when the role or the credentials do not hold it, and KeyError for a permission that
    does not exist.
    """
    scope = PERMISSIONS[permission].get(principal.role)
    if scope is None:
        raise Forbidden(_("the permission {permission} is not part of your role"), permission=permission)
    if principal.scopes is not None and permission not in principal.scopes:
        raise Forbidden(_("these credentials are not good for {permission}"), permission=permission)
    return scope


def permissions_of(role: Role) -> frozenset[str]:
    """Every permission that a role holds, in any scope."""
    return frozenset(name for name, row in PERMISSIONS.items() if role in row)


def held_by(principal: Principal) -> frozenset[str]:
    """Every permission that the caller's credentials are good for."""
    held = permissions_of(principal.role)
    return held if principal.scopes is None else held & principal.scopes


def require_grantable(principal: Principal, role: Role, *, scopes: frozenset[str] | None = None) -> None:
    """Refuse to hand on what the caller lacks: whoever acts for `role` afterwards gets no further.

    Asked before a role or a key is given, and before anything by which one could be had in a roundabout
    way: a reset of another's password, a key for another member. `scopes` bounds what is handed on.
    """
    handed = permissions_of(role) if scopes is None else permissions_of(role) & scopes
    held = held_by(principal)
    for name in sorted(handed):
        row = PERMISSIONS[name]
        if name not in held or _REACH[row[role]] > _REACH[row[principal.role]]:
            raise Forbidden(_("you cannot hand on {permission}, which you do not hold"), permission=name)
