"""Errors that a user may read. The class is the problem type; app/http/problems.py is its only renderer.

DomainError
+-- BadRequest            400  malformed in a way that no field explains
+-- Unauthorized          401  who are you
+-- Forbidden             403  you may not
+-- NotFound              404  absent, or somebody else's: never told apart
+-- Conflict              409  the state of things forbids it
+-- TooLarge              413
+-- Invalid               422  understood, and wrong
+-- StorageFull           507  nothing was kept
+-- Unavailable           503  try again

Texts are marked with `_`; parameters fill their `{places}` after translation and are shown as members.
"""

from __future__ import annotations

from typing import Any, ClassVar

from app.core.i18n import _


class DomainError(Exception):
    """A refusal with a stable code. Its text may be shown to anyone: no secrets, no other tenant's data."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = _("Internal error")
    meaning: ClassVar[str] = _("The server failed. What happened is in its log under the request's id.")
    remedy: ClassVar[str] = _("Try again; if it stays, send the request id to the operator.")
    retry_after_s: ClassVar[int | None] = None
    """Set exactly where the same request may succeed later."""
    is_suspicious: ClassVar[bool] = False
    """Whether the refusal is noted as a security event: honest callers hardly ever meet it."""

    def __init__(self, detail: str = "", /, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members

    def __str__(self) -> str:
        try:
            return self.detail.format_map(self.members)
        except (KeyError, IndexError, ValueError):
            return self.detail


class BadRequest(DomainError):
    """The request cannot be read."""

    status, code, title = 400, "bad_request", _("Bad request")
    meaning = _("The request could not be read as HTTP or JSON.")
    remedy = _("Compare it with the example in the API's documentation.")


class Unauthorized(DomainError):
    """No credentials, or credentials that do not hold."""

    status, code, title = 401, "unauthorized", _("Authentication required")
    meaning = _("The request carries no valid access token or API key.")
    remedy = _("Get a token at POST /v1/tokens, or send an API key as the bearer; check your clock.")


class Forbidden(DomainError):
    """Known, and not allowed."""

    status, code, title = 403, "forbidden", _("Not allowed")
    meaning = _("Your role does not hold the permission that this operation needs.")
    remedy = _("Ask an administrator of your organisation for the role.")


class NotFound(DomainError):
    """Absent, or another tenant's: the two are never told apart."""

    status, code, title = 404, "not_found", _("Not found")
    meaning = _("There is no such object, or it is not yours to see.")
    remedy = _("Check the identifier and the organisation that you act for.")


class Conflict(DomainError):
    """The object's present state forbids the operation."""

    status, code, title = 409, "conflict", _("Conflict")
    meaning = _("The object is in a state that does not allow this operation.")
    remedy = _("Read the object again and decide by its present state.")


class TooLarge(DomainError):
    """A body over its ceiling."""

    status, code, title = 413, "too_large", _("Body too large")
    meaning = _("The body is larger than this endpoint accepts.")
    remedy = _("Send at most as many bytes as the answer names.")


class Invalid(DomainError):
    """Well-formed and wrong."""

    status, code, title = 422, "invalid", _("Invalid request")
    meaning = _("A value in the request is missing, unknown or outside its limits.")
    remedy = _("Correct the members that the answer names.")


class Unavailable(DomainError):
    """A service behind us does not answer."""

    status, code, title = 503, "unavailable", _("Temporarily unavailable")
    meaning = _("A service that this operation needs does not answer. Nothing was changed.")
    remedy = _("Send the same request again after the time in Retry-After.")
    retry_after_s = 2


class StorageFull(DomainError):
    """The bytes could not be written; nothing of them was kept."""

    status, code, title = 507, "storage_full", _("Storage is full")
    meaning = _("The server could not write the bytes. None of them was kept.")
    remedy = _("Send the same bytes again later; the operator has to free storage.")
    retry_after_s = 60


class IllegalTransition(Conflict):
    """A state machine has no such edge."""

    code, title = "illegal_transition", _("Illegal transition")
    meaning = _("The object cannot go from its present state to the one that was asked for.")
