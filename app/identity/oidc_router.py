"""Signing in through an issuer: away, back, and the code for tokens (RFC 6749 with RFC 7636)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BaseModel, StringConstraints

from app.core.errors import DomainError, NotFound
from app.core.few_threads import FewThreads
from app.core.i18n import _
from app.core.settings import Settings
from app.http.deps import SettingsDep, address_of, public, short_tx
from app.http.limits import limited
from app.http.routes import ThreadedRoute
from app.http.state import KeyRingDep, VaultDep
from app.identity import oidc_sign_in
from app.identity.account_schemas import IssuersView, IssuerView, OidcTokenForm, SignedInView
from app.identity.oidc import IssuerRefused, Provider
from app.identity.sessions_router import signed_in, signer_of

router = APIRouter(tags=["sessions"], route_class=ThreadedRoute)
# A page that opened a window for the sign-in keeps its hold of it through the redirects.
_OPEN = {"Cross-Origin-Opener-Policy": "unsafe-none"}
Text = Annotated[str, StringConstraints(max_length=500, pattern=r"^[\x20-\x7e]*$")]
Challenge = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
FOUND: dict[int | str, dict[str, str]] = {302: {"description": "Where the browser goes next."}}


class Asked(BaseModel):
    """What a front end asks for."""

    response_type: Annotated[str, StringConstraints(pattern="^code$")] = "code"
    client_id: Text = ""
    redirect_uri: Text
    state: Text = ""
    scope: Text = ""
    code_challenge: Challenge
    code_challenge_method: Annotated[str, StringConstraints(pattern="^S256$")]


class CameBack(BaseModel):
    """What an issuer sends back with the browser."""

    state: Text
    code: Annotated[str, StringConstraints(max_length=2000, pattern=r"^[\x20-\x7e]*$")] = ""
    iss: Text | None = None
    error: Text | None = None


@router.get("/oidc", dependencies=[public("how one may sign in is no secret")])
def list_issuers(settings: SettingsDep) -> IssuersView:
    """The issuers through which members may sign in."""
    return IssuersView(items=[IssuerView(name=one.name, issuer=one.issuer) for one in settings.oidc])


@router.get(
    "/oidc/{issuer_name}/authorize",
    status_code=302,
    response_class=Response,
    responses=FOUND,
    dependencies=[public("the sign-in itself"), limited("oidc_begin", per_minute=60)],
)
async def begin_oidc(
    issuer_name: str,
    asked: Annotated[Asked, Query()],
    request: Request,
    settings: SettingsDep,
    vault: VaultDep,
) -> Response:
    """Begin a sign-in: the browser goes to the issuer, and comes back to `redirect_uri` with a code."""
    provider = _provider(request, issuer_name)
    begun = await short_tx(
        request,
        "oidc_begin",
        lambda session: oidc_sign_in.begin(
            session,
            settings,
            vault,
            issuer=provider.issuer,
            redirect_uri=asked.redirect_uri,
            caller_state=asked.state,
            code_challenge=asked.code_challenge,
        ),
    )
    place = await _asking(request).run(
        lambda: provider.address(
            redirect_uri=_callback(settings), state=begun.state, nonce=begun.nonce, verifier=begun.verifier
        )
    )
    return _found(place)


@router.get(
    "/oidc/callback",
    status_code=302,
    response_class=Response,
    responses=FOUND,
    dependencies=[public("the sign-in itself"), limited("oidc_back", per_minute=60)],
)
async def finish_oidc(
    came: Annotated[CameBack, Query()], request: Request, settings: SettingsDep, vault: VaultDep
) -> Response:
    """Where an issuer sends the browser back to; it goes on to the front end with a code of ours."""
    underway = await short_tx(
        request, "oidc_back", lambda session: oidc_sign_in.take_up(session, vault, state=came.state)
    )
    if isinstance(underway, DomainError):
        raise underway
    provider = _provider(request, underway.issuer_name)
    described = await _asking(request).run(provider.described)
    is_itself = came.iss == provider.issuer.issuer or (came.iss is None and not described.names_itself)
    if came.error is not None or not came.code or not is_itself:
        raise IssuerRefused(_("the issuer's answer does not hold"))
    person = await _asking(request).run(
        lambda: provider.exchange(
            code=came.code,
            redirect_uri=_callback(settings),
            nonce=underway.nonce,
            verifier=underway.verifier,
        )
    )
    code = await short_tx(
        request,
        "oidc_back",
        lambda session: oidc_sign_in.hand_back(
            session, vault, issuer=provider.issuer, underway=underway, person=person
        ),
    )
    query = urlencode({"code": code, "state": underway.caller_state})
    return _found(f"{underway.redirect_uri}{'&' if '?' in underway.redirect_uri else '?'}{query}")


@router.post(
    "/oidc/token",
    dependencies=[public("its code and verifier are the credential"), limited("oidc_token", per_minute=60)],
)
async def exchange_oidc_code(
    form: Annotated[OidcTokenForm, Form()],
    request: Request,
    settings: SettingsDep,
    vault: VaultDep,
    keys: KeyRingDep,
) -> SignedInView:
    """Exchange the code of a sign-in through an issuer for tokens."""
    signer = await signer_of(keys)
    found = await short_tx(
        request,
        "oidc_token",
        lambda session: oidc_sign_in.redeem(
            session,
            settings,
            vault,
            signer,
            code=form.code,
            code_verifier=form.code_verifier,
            redirect_uri=form.redirect_uri,
            address=address_of(request),
        ),
    )
    return signed_in(found)


def _provider(request: Request, name: str) -> Provider:
    providers: Mapping[str, Provider] = request.app.state.providers
    if name not in providers:
        raise NotFound(_("there is no such issuer"))
    return providers[name]


def _asking(request: Request) -> FewThreads:
    """The threads that wait for issuers: a slow one holds up nothing but sign-ins through it."""
    asking: FewThreads = request.app.state.asking
    return asking


def _callback(settings: Settings) -> str:
    return f"{settings.public_url.rstrip('/')}/v1/oidc/callback"


def _found(place: str) -> Response:
    return Response(status_code=302, headers={"Location": place} | _OPEN)
