"""A route says who may call it, or the gateway does not start."""

import re
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI

from app.core.settings import Settings
from app.http.deps import Requires, public, requires
from app.identity.permissions import PERMISSIONS
from app.identity.roles import Principal
from app.main import api_routes, build_app, declared, undeclared_routes


def test_every_route_declares_who_may_call_it(settings: Settings) -> None:
    assert undeclared_routes(build_app(settings)) == []


def test_a_route_without_a_declaration_is_found() -> None:
    router = APIRouter()

    @router.get("/open")
    def forgotten() -> None:
        """A route that says nothing."""

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router, prefix="/v1")
    assert undeclared_routes(app) == ["['GET'] /v1/open"]


def test_declared_routes_pass() -> None:
    router = APIRouter()

    @router.get("/open", dependencies=[public("a test")])
    def declared_open() -> None:
        """Open, and says why."""

    @router.get("/closed")
    def declared_closed(principal: Annotated[Principal, requires("rounds:seal")]) -> None:
        """Needs a permission."""

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router)
    assert undeclared_routes(app) == []


def test_the_gateway_does_not_start_with_an_undeclared_route(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.get("/open")
    def forgotten() -> None:
        """A route that says nothing."""

    monkeypatch.setattr("app.main.ROUTERS", (router,))
    with pytest.raises(RuntimeError, match=re.escape("/v1/open")):
        build_app(settings)


def test_permissions_of_routes_exist_in_the_table(settings: Settings) -> None:
    routes = api_routes(build_app(settings))
    named = {call.permission for route in routes for call in declared(route) if isinstance(call, Requires)}
    assert named <= set(PERMISSIONS)
