"""Plans over HTTP: what a plan means, as JSON or as a page."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.core.i18n import choose_locale
from app.http.deps import SessionDep, requires
from app.http.downloads import Responses
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal
from app.runs import queries
from app.runs.explanation import explain
from app.runs.explanation_page import POLICY, page
from app.runs.explanation_schemas import ExplanationOut
from app.runs.manifest import Manifest

router = APIRouter(prefix="/plans", tags=["runs"], route_class=ThreadedRoute)

_PAGE: Responses = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}


@router.get("/{run_id}/explanation", response_model=ExplanationOut, responses=_PAGE)
def explain_plan(
    run_id: UUID,
    request: Request,
    response: Response,
    session: SessionDep,
    principal: Annotated[Principal, requires("runs:read")],
) -> ExplanationOut | Response:
    """Explain what a run's plan protects, from whom and how well; `Accept: text/html` gives a page to print.

    In the language of Accept-Language. A draft is explained as it stands, without numbers.
    """
    run = queries.run_for(session, principal, run_id)
    locale = choose_locale(request.headers.get("accept-language"))
    found = explain(
        Manifest.model_validate(run.manifest), run.price, clients=len(queries.client_ids_of(session, run_id))
    )
    shown = ExplanationOut.of(run, found, locale=locale)
    headers = {"Content-Language": locale, "Vary": "Accept, Accept-Language"}
    if prefers_page(request.headers.get("accept")):
        return HTMLResponse(page(shown), headers=headers | {"Content-Security-Policy": POLICY})
    response.headers.update(headers)
    return shown


def prefers_page(accept: str | None) -> bool:
    """Say whether an Accept header (RFC 9110 section 12.5.1) would rather have HTML than JSON."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in (accept or "")[:1000].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = _weight(parameters)
    return weights["text/html"] > weights["application/json"]


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
