"""What the `type` of a problem document leads to: a page that says what happened and what to do.

In the reader's language. The pages are made from the error classes, so none can be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from app.core.errors import DomainError, NotFound
from app.core.i18n import _, choose_locale, translate
from app.http.deps import public

router = APIRouter(include_in_schema=False, dependencies=[public("error pages are public")])

POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
_STYLE = """body { font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; }
dt { font-weight: 600; margin-top: 1rem; } dd { margin: 0; } code { font-family: ui-monospace, monospace; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } a { color: #9cf; } }
"""


def problem_types() -> dict[str, type[DomainError]]:
    """Every kind of problem that can be answered, by its code."""
    return {kind.code: kind for kind in sorted(_descendants(DomainError), key=lambda kind: kind.code)}


def _descendants(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


@router.get("/problems")
def get_problems(request: Request) -> HTMLResponse:
    """All problems, with links."""
    locale = _locale(request)
    rows = "".join(
        f'<li><a href="problems/{escape(code)}"><code>{escape(code)}</code></a> '
        f"({kind.status}): {escape(translate(kind.title, locale))}</li>"
        for code, kind in problem_types().items()
    )
    return _page(
        locale,
        translate(_("Problems that this API reports"), locale),
        f"<ul>{rows}</ul>",
        sheet="problems/style.css",
    )


@router.get("/problems/style.css")
def get_style() -> Response:
    """The pages' style sheet."""
    return Response(_STYLE, media_type="text/css", headers={"Cache-Control": "public, max-age=86400"})


@router.get("/problems/{code}")
def get_problem(code: str, request: Request) -> HTMLResponse:
    """One problem: meaning, remedy, and whether the same request may succeed later."""
    kind = problem_types().get(code)
    if kind is None:
        raise NotFound(_("there is no such problem"))
    locale = _locale(request)
    retry = (
        _("Yes: the same request may succeed later; the answer's Retry-After says when.")
        if kind.retry_after_s is not None
        else _("No: the same request will fail again until what is named above has changed.")
    )
    entries = (
        (_("Status"), str(kind.status)),
        (_("Code"), kind.code),
        (_("Meaning"), translate(kind.meaning, locale)),
        (_("Remedy"), translate(kind.remedy, locale)),
        (_("Worth repeating?"), translate(retry, locale)),
    )
    terms = "".join(
        f"<dt>{escape(translate(term, locale))}</dt><dd>{escape(text)}</dd>" for term, text in entries
    )
    return _page(locale, translate(kind.title, locale), f"<dl>{terms}</dl>", sheet="style.css")


def _locale(request: Request) -> str:
    return choose_locale(request.headers.get("accept-language"))


def _page(locale: str, title: str, content: str, *, sheet: str) -> HTMLResponse:
    html = (
        f'<!doctype html><html lang="{escape(locale)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="{sheet}"></head>'
        f"<body><h1>{escape(title)}</h1>{content}</body></html>"
    )
    headers = {"Content-Security-Policy": POLICY, "Content-Language": locale, "Vary": "Accept-Language"}
    return HTMLResponse(html, headers=headers | {"Cache-Control": "public, max-age=300"})
