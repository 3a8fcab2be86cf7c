"""Which methods an address answers: the router itself names those of one route only."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts


def allowed_methods(app: FastAPI, path: str) -> str:
    """The value of Allow (RFC 9110, section 10.2.1) for a path."""
    found: set[str] = set()
    for route in iter_route_contexts(app.routes):
        regex = getattr(route, "path_regex", None)
        if regex is not None and regex.match(path):
            found |= route.methods or set()
    return ", ".join(sorted(found))
