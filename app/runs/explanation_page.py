"""The explanation as one page that can be printed or kept: no script, no other file, no foreign host."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from app.core.i18n import translate
from app.runs import explanation_texts as texts
from app.runs.explanation_schemas import ExplanationOut

_STYLE = """body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; }
h2 { font-size: 1.15rem; margin: 1.5rem 0 .25rem; } p { margin: .25rem 0; }
dt { font-weight: 600; margin-top: .75rem; } dd { margin: 0; }
.warning { border-left: .25rem solid #b00; padding-left: .75rem; } code { overflow-wrap: anywhere; }
@media print { body { font-size: 10pt; margin: 0; max-width: none; } h2, dt { break-after: avoid; }
section, dd { break-inside: avoid; } }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; frame-ancestors 'none'; base-uri 'none'"
_PARAGRAPHS = ("protected", "from_whom", "neighbours", "composition", "basis")


def page(shown: ExplanationOut) -> str:
    """The whole document, in the language of what is shown."""
    locale = shown.language
    title = translate(texts.TITLE, locale, name=shown.name)
    body = [_warnings(shown), *(_section(shown, name, getattr(shown, name)) for name in _PARAGRAPHS)]
    if shown.attack is not None:
        body.append(_section(shown, "attack", shown.attack.text))
    if shown.noise_to_signal is not None:
        body.append(_section(shown, "noise_to_signal", shown.noise_to_signal.text))
    body.append(_points(shown))
    return (
        f'<!doctype html><html lang="{escape(locale)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(body)}{_identity(shown)}</body></html>"
    )


def _section(shown: ExplanationOut, name: str, text: str | None) -> str:
    if text is None:
        return ""
    heading = translate(texts.HEADINGS[name], shown.language)
    return f"<section><h2>{escape(heading)}</h2><p>{escape(text)}</p></section>"


def _warnings(shown: ExplanationOut) -> str:
    if not shown.warnings:
        return ""
    heading = translate(texts.HEADINGS["warnings"], shown.language)
    lines = "".join(f'<p class="warning">{escape(one.text)}</p>' for one in shown.warnings)
    return f"<section><h2>{escape(heading)}</h2>{lines}</section>"


def _points(shown: ExplanationOut) -> str:
    heading = translate(texts.HEADINGS["nist"], shown.language)
    lines = "".join(
        f"<dt>{escape(one.title)}</dt><dd>{escape(one.text)}</dd>" for one in shown.nist_sp_800_226
    )
    return f"<section><h2>{escape(heading)}</h2><dl>{lines}</dl></section>"


def _identity(shown: ExplanationOut) -> str:
    """Which plan this page is about; without a digest, one that may still change."""
    return f"<p><code>{escape(str(shown.run_id))} {escape(shown.manifest_sha256 or '')}</code></p>"
