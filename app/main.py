"""The composition root: settings in, a FastAPI application out. It mounts routers and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts

from app import schema
from app.admin import audit_router, security_router
from app.admin import router as admin_router
from app.budget import enrolment_router, violations_router
from app.budget import router as budget_router
from app.core.authority import Authority
from app.core.crypto import Vault
from app.core.db import Database
from app.core.few_threads import FewThreads
from app.core.hub import Hub
from app.core.logs import configure_logs
from app.core.settings import Settings
from app.custody.blobs import Blobs
from app.http import docs, health, metrics, middleware, openapi, pages, problems
from app.http.deps import Public, Requires
from app.http.rates import Rates, connected
from app.identity import (
    account_router,
    certificates_router,
    clients_router,
    keys_router,
    members_router,
    oidc_router,
    sessions_router,
)
from app.identity import router as identity_router
from app.identity.authentication import Authenticator
from app.identity.keys import CHANNEL, KeyRing
from app.identity.oidc import providers_of
from app.identity.passwords import hashing_threads
from app.policies import router as policies_router
from app.releases import router as releases_router
from app.rounds import evidence_router
from app.rounds import router as rounds_router
from app.runs import assignments_router, moving_router, plans_router, projection_router, ruling_router
from app.runs import router as runs_router
from app.updates import router as updates_router
from app.updates.stream import Uploads

ROUTERS: tuple[APIRouter, ...] = (
    identity_router.router,
    members_router.router,
    policies_router.router,
    ruling_router.router,
    sessions_router.router,
    oidc_router.router,
    account_router.router,
    keys_router.router,
    clients_router.router,
    certificates_router.router,
    enrolment_router.invitations,
    enrolment_router.router,
    runs_router.router,
    plans_router.router,
    moving_router.router,
    assignments_router.router,
    rounds_router.router,
    evidence_router.router,
    updates_router.router,
    releases_router.router,
    budget_router.router,
    projection_router.router,
    violations_router.router,
    audit_router.router,
    audit_router.open_router,
    security_router.router,
    admin_router.router,
)
"""Mounted under /v1."""
OPEN_ROUTERS: tuple[APIRouter, ...] = (
    clients_router.keys_router,
    docs.router,
    health.router,
    metrics.router,
    pages.router,
)
"""Mounted at the root: health, keys, problem pages, documentation."""

assert_tables = schema.metadata.tables  # the mappers of every feature must be known before the first query


def install_state(app: FastAPI, settings: Settings, database: Database) -> None:
    """Put what requests use on `app.state`; tests call this with their own database."""
    app.state.settings = settings
    app.state.database = database
    app.state.blobs = Blobs.of_process(settings, database)
    app.state.uploads = Uploads()
    app.state.vault = Vault(settings.master_key_bytes)
    app.state.rates = _rates(app, settings)
    app.state.hashing = hashing_threads()
    app.state.asking = FewThreads("issuers", threads=4, most_waiting=32)
    app.state.providers = providers_of(settings)
    app.state.keys = KeyRing(database, app.state.vault)
    app.state.authority = _authority(settings)
    app.state.authenticator = Authenticator(
        settings=settings, database=database, vault=app.state.vault, keys=app.state.keys
    )


def _rates(app: FastAPI, settings: Settings) -> Rates:
    """Counts of calls, shared by the gateways of one public address."""
    vault: Vault = app.state.vault

    def name(subject: str) -> str:
        return f"dpfl:rate:{vault.fingerprint('rate', f'{settings.public_url} {subject}').hex()[:32]}"

    url = settings.redis_url
    shared = None if url is None else connected(url.get_secret_value())
    return Rates(shared, name=name, told=app.state.metrics.rates_local)


def _authority(settings: Settings) -> Authority | None:
    """What signs client certificates, where the operator gave this server its key."""
    if settings.tls_ca is None or settings.tls_ca_key is None:
        return None
    return Authority.read(settings.tls_ca.read_bytes(), settings.tls_ca_key.read_bytes())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and the hub; close both."""
    settings: Settings = app.state.settings
    # Threads and connections are equal in number: a thread then never waits for a connection
    # whose holder waits for a thread.
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.pool_size
    database = Database(settings.database_url.get_secret_value(), pool_size=settings.pool_size)
    install_state(app, settings, database)
    app.state.hub = Hub(settings.database_url.get_secret_value())
    app.state.hub.subscribe(CHANNEL, app.state.authenticator.suspensions.announce)
    app.state.hub.subscribe(CHANNEL, app.state.keys.announce)
    app.state.hub.start()
    try:
        yield
    finally:
        await app.state.hub.stop()
        app.state.rates.close()
        database.dispose()


def declared(route: RouteContext) -> Iterator[Requires | Public]:
    """What a route says about who may call it, its router's own dependencies included."""
    pending = [route.dependant]
    while pending:
        dependant = pending.pop()
        if isinstance(dependant.call, Requires | Public):
            yield dependant.call
        pending.extend(dependant.dependencies)


def api_routes(app: FastAPI) -> list[RouteContext]:
    """Every endpoint; included routers are resolved, which `app.routes` alone does not do."""
    return [route for route in iter_route_contexts(app.routes) if isinstance(route.original_route, APIRoute)]


def undeclared_routes(app: FastAPI) -> list[str]:
    """Routes that name neither a permission nor why they are public."""
    return [
        f"{sorted(route.methods or ())} {route.path}" for route in api_routes(app) if not any(declared(route))
    ]


def build_app(settings: Settings) -> FastAPI:
    """Build the gateway. Raises RuntimeError when a route declares no permission."""
    configure_logs(settings.environment)
    app = FastAPI(
        title="DP-Federated LoRA Lab",
        version="0.1.0",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings = settings
    problems.install(app)
    middleware.install(app, settings)
    for router in ROUTERS:
        app.include_router(router, prefix="/v1")
    for router in OPEN_ROUTERS:
        app.include_router(router)
    openapi.install(app)
    if undeclared := undeclared_routes(app):
        raise RuntimeError(f"routes without a declared permission: {', '.join(undeclared)}")
    return app
