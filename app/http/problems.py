"""The only place where an error becomes an answer: RFC 9457 problem documents, in the reader's language."""

from __future__ import annotations

import sqlalchemy.exc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.core.errors import (
    BadRequest,
    DomainError,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from app.core.i18n import _, choose_locale, translate
from app.http.failures import log_unavailable, log_unhandled
from app.http.methods import allowed_methods
from app.http.suspicions import note_refusal

MEDIA_TYPE = "application/problem+json"


class MethodNotAllowed(DomainError):
    """The path exists, not for this method."""

    status, code, title = 405, "method_not_allowed", _("Method not allowed")
    meaning = _("This address does not answer this HTTP method.")
    remedy = _("Use one of the methods in the Allow header.")


class UnsupportedMedia(DomainError):
    """The body's media type is not the declared one."""

    status, code, title = 415, "unsupported_media_type", _("Unsupported media type")
    meaning = _("The body is not of the media type that this endpoint reads.")
    remedy = _("Send the Content-Type that the API's documentation names.")


_BY_STATUS: dict[int, type[DomainError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    413: TooLarge,
    415: UnsupportedMedia,
}


def problem(request: Request, error: DomainError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Render an error for this request's reader."""
    locale = choose_locale(request.headers.get("accept-language"))
    base = request.app.state.settings.public_url.rstrip("/")
    title = translate(error.title, locale)
    document: dict[str, object] = dict(error.members) | {
        "type": f"{base}/problems/{error.code}",
        "title": title,
        "status": error.status,
        "code": error.code,
        "detail": translate(error.detail, locale, **error.members) if error.detail else title,
        "instance": request.url.path,
        "retryable": error.retry_after_s is not None,
    }
    if request_id := getattr(request.state, "request_id", None):
        document["request_id"] = request_id
    sent = dict(headers or {}) | {"Content-Language": locale}
    if error.retry_after_s is not None:
        sent["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="dpfl", DPoP realm="dpfl", algs="EdDSA"'
    return JSONResponse(document, status_code=error.status, media_type=MEDIA_TYPE, headers=sent)


def _invalid(error: RequestValidationError) -> DomainError:
    faults = [
        {
            "pointer": "/" + "/".join(str(part) for part in fault["loc"]),
            "message": str(fault["msg"]),
            "rule": str(fault["type"]),
        }
        for fault in error.errors()[:50]
    ]
    if any(fault["rule"] == "json_invalid" for fault in faults):
        return BadRequest(_("the body is not valid JSON"), errors=faults)
    return Invalid(_("{count} member(s) of the request are wrong"), count=len(faults), errors=faults)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(DomainError)
    def on_domain_error(request: Request, error: DomainError) -> JSONResponse:
        if error.is_suspicious:
            note_refusal(request, error)
        return problem(request, error)

    @app.exception_handler(RequestValidationError)
    def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(request, _invalid(error))

    @app.exception_handler(HTTPException)
    def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        kind = _BY_STATUS.get(error.status_code, DomainError)
        headers = dict(error.headers or {})
        if kind is MethodNotAllowed:
            headers["Allow"] = allowed_methods(request.app, request.url.path)
        return problem(request, kind(), headers=headers)

    @app.exception_handler(sqlalchemy.exc.OperationalError)
    @app.exception_handler(sqlalchemy.exc.TimeoutError)
    def on_database_gone(request: Request, error: Exception) -> JSONResponse:
        log_unavailable(request.scope, error)
        return problem(request, Unavailable(_("the database does not answer")))

    @app.exception_handler(Exception)
    def on_unknown(request: Request, error: Exception) -> JSONResponse:
        log_unhandled(request.scope, error)
        return problem(request, DomainError())
