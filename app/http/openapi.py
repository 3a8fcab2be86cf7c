"""The API's description, completed: names of operations, every status that can occur, binary bodies.

FastAPI describes what endpoints declare; refusals come from layers that no endpoint names, so they are
added here, by the rules that those layers follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from pydantic import BaseModel

from app.core.canonical import Json
from app.core.settings import Settings
from app.http import idempotency
from app.http.hosts import PROBES
from app.http.problems import MEDIA_TYPE

DESCRIPTION = """Federated LoRA fine-tuning under differential privacy that can be proved.

Sign in with *Create session* under *sessions*: that authorizes this page until it is left. Or paste an
API key under *Authorize*. A client's token is bound to its key and of no use here. Every refusal is a problem
document (RFC 9457) with a stable `code`; its `type` leads to a page about what to do."""

TAGS = [
    {"name": "runs", "description": "Federated fine-tuning runs: plan, price, start, follow."},
    {"name": "rounds", "description": "The rounds of a run, and what a training client fetches and sends."},
    {"name": "releases", "description": "Published adapters with their certificates."},
    {"name": "budgets", "description": "The privacy ledger: what may be spent, was reserved and was spent."},
    {"name": "clients", "description": "Enrolment, training clients and their tokens."},
    {"name": "audit", "description": "The tamper-evident log: entries, receipts, proofs, export."},
    {"name": "organisations", "description": "Organisations, members, API keys and signing keys."},
    {
        "name": "data rules",
        "description": "What an organisation's data may be used for, set by its data steward.",
    },
    {"name": "sessions", "description": "Signing in, one's own account, signing out."},
    {"name": "security", "description": "What looked like an attack, and what was made of it."},
    {
        "name": "operation",
        "description": "For operators: health, metrics, background jobs, checks on demand.",
    },
]
_BINARY = {"type": "string", "format": "binary"}
_OCTETS = "application/octet-stream"
_UPDATE_PATH = "/updates/"
_LOG_PATH = "/v1/audit/"
_REASONS = {
    "400": "The request cannot be read.",
    "401": "No credentials, or credentials that do not hold.",
    "403": "The role does not hold the permission, the caller is suspended, or a data rule denies it.",
    "404": "There is no such object, or it is not yours to see.",
    "405": "The path does not answer this method.",
    "409": "The present state forbids it.",
    "413": "The body is too large.",
    "415": "The body is of another media type.",
    "421": "Called by a name that is not this server's.",
    "422": "A value is missing, unknown or outside its limits.",
    "429": "Too many requests; see Retry-After.",
    "503": "A service behind the gateway does not answer; see Retry-After.",
    "507": "The bytes could not be stored; none was kept.",
}
PROBLEM: Json = {
    "type": "object",
    "title": "Problem",
    "description": "A refusal (RFC 9457). Further members tell what the code is about.",
    "required": ["type", "title", "status", "code", "detail", "instance", "retryable"],
    "examples": [
        {
            "type": "https://lab.example/problems/not_found",
            "title": "Not found",
            "status": 404,
            "code": "not_found",
            "detail": "There is no such object, or it is not yours to see.",
            "instance": "/v1/runs/01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77",
            "retryable": False,
            "request_id": "b032d262-50d2-469e-84f0-98afdae105bb",
        }
    ],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Leads to a page about the code."},
        "title": {"type": "string", "description": "In the reader's language."},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; decide by this."},
        "detail": {"type": "string", "description": "What happened this time, in the reader's language."},
        "instance": {"type": "string"},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "request_id": {"type": "string", "description": "Tell it to the operator."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string"},
                    "message": {"type": "string"},
                    "rule": {"type": "string"},
                },
            },
        },
    },
}
_KEY_PARAMETER: Json = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "description": "Makes repeating safe: for a day the same key and body get the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}


def install(app: FastAPI) -> None:
    """Let `app.openapi()` return the completed description."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way


def describe(app: FastAPI) -> Json:
    """Build the description from the application's routes."""
    document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, tags=TAGS, routes=app.routes
    )
    document["servers"] = [{"url": "/"}]
    routes = dict(_routes(app))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _complete(path, method, operation, routes[(path, method)])
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for route in routes.values():
        _restore_examples(schemas, route)
    schemas["Problem"] = PROBLEM
    _say_exactly(schemas)
    _offer_issuers(document, app.state.settings)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _offer_issuers(document: Json, settings: Settings) -> None:
    """Offer the sign-in through each configured issuer wherever a bearer is taken."""
    schemes = document["components"].get("securitySchemes", {})
    for issuer in settings.oidc:
        schemes[f"oidc-{issuer.name}"] = {
            "type": "oauth2",
            "description": f"Sign in at {issuer.issuer}.",
            "flows": {
                "authorizationCode": {
                    "authorizationUrl": f"/v1/oidc/{issuer.name}/authorize",
                    "tokenUrl": "/v1/oidc/token",
                    "scopes": {},
                }
            },
        }
    for item in document["paths"].values():
        for operation in item.values():
            if _is_secured(operation):
                operation["security"] += [{f"oidc-{issuer.name}": []} for issuer in settings.oidc]


def _routes(app: FastAPI) -> Iterator[tuple[tuple[str, str], RouteContext]]:
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            for method in route.methods or ():
                yield (str(route.path_format), method.lower()), route


def _restore_examples(schemas: Json, route: RouteContext) -> None:
    """Put a body's examples back as they were written: FastAPI drops every null in them."""
    field = getattr(route, "body_field", None)
    model = None if field is None else field.field_info.annotation
    if isinstance(model, type) and issubclass(model, BaseModel):
        extra = model.model_config.get("json_schema_extra")
        if isinstance(extra, dict) and "examples" in extra and model.__name__ in schemas:
            schemas[model.__name__]["examples"] = extra["examples"]


def _without_null(schema: Json) -> None:
    """A parameter that is left out is absent: an address and a header have no null."""
    told = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(told) == 1:
        del schema["anyOf"]
        schema |= told[0]


def _say_exactly(node: Any) -> None:
    """Close objects whose keys have a pattern, which leaves all others free; state limits as integers.

    FastAPI writes limits as floats, and 2**63 - 1 is none.
    """
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _say_exactly(child)
    if isinstance(node, dict) and "patternProperties" in node:
        node.setdefault("additionalProperties", False)
    if isinstance(node, dict) and node.get("maximum") == 2.0**63:
        node["maximum"] = 2**63 - 1


def _complete(path: str, method: str, operation: Json, route: RouteContext) -> None:
    name = getattr(route.endpoint, "__name__", "")
    operation["operationId"] = name
    operation["summary"] = name.replace("_", " ").capitalize()
    for parameter in operation.get("parameters", []):
        _without_null(parameter["schema"])
    responses = operation["responses"]
    for status in _statuses(path, method, operation):
        responses[status] = {
            "description": _REASONS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    if method == "post" and getattr(route.original_route, "is_idempotent", False) and _is_secured(operation):
        operation.setdefault("parameters", []).append(_KEY_PARAMETER)
    for content in (operation.get("requestBody", {}), *responses.values()):
        if _OCTETS in content.get("content", {}):
            content["content"][_OCTETS]["schema"] = _BINARY
    operation["responses"] = dict(sorted(responses.items()))


def _is_secured(operation: Json) -> bool:
    return bool(operation.get("security"))


def _statuses(path: str, method: str, operation: Json) -> list[str]:
    """Which refusals can come from the layers around an endpoint, and from what endpoints do."""
    found = {"405", "503"} | (set() if path in PROBES else {"421"})
    if _is_secured(operation):
        found |= {"401", "403", "404" if "{" in path else "403", "429"}
    if "requestBody" in operation:
        found |= {"400", "401", "404", "413", "415", "422", "507" if _UPDATE_PATH in path else "422"}
    if operation.get("parameters") or method == "post":
        found |= {"422"}
    if "/oidc/" in path:  # asks another server, and refuses what does not hold
        found |= {"401", "403", "404", "429"}
    if method != "get" or path.endswith("/projections/{run_id}"):  # a plan without a price projects nothing
        found |= {"409"}
    if not _is_secured(operation) and method == "post":
        found |= {"403", "429"}
    if path.startswith(_LOG_PATH):  # the log may have no checkpoint yet, or fewer entries than were asked for
        found |= {"404"} if _is_secured(operation) else {"404", "429"}
    if path == "/metrics":
        found |= {"401", "403", "429"}
    return sorted(found)
