"""`dpfl audit`: take the audit log home, and check what was taken with nothing but the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from cli.access import KeyFileOption, ServerOption, open_session
from cli.documents import error
from cli.i18n import _
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from app.audit.verify import Verified

app = typer.Typer(name="audit", help=_("Export and check the audit log."), no_args_is_help=True)

_MOST_BYTES = 1 << 30
_MOST_NOTE_BYTES = 16 * 1024


@app.command(help=_("Download the audit log up to its newest checkpoint."))
def export(
    file: Annotated[Path, typer.Argument(help=_("The file to write."))],
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Write the log as JSON Lines; it is not believed before `verify`."""
    with one_line_errors():
        from client.durable import write_whole

        with open_session(server, key_file) as session:
            content = session.download("/v1/audit/export", limit_bytes=_MOST_BYTES).content
        write_whole(file, content, mode=0o644)
        print(_("{file}: {bytes} bytes", file=file, bytes=len(content)))


@app.command(help=_("Check an export: every entry, the root, the signature. Asks no server and no database."))
def verify(
    file: Annotated[Path, typer.Argument(help=_("What `dpfl audit export` wrote."))],
    offline: Annotated[
        bool, typer.Option("--offline", help=_("With the file alone; there is no other way to check."))
    ] = True,
    key: Annotated[
        str | None,
        typer.Option("--key", help=_("The log's public key in hex, as you got it by another way.")),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help=_("A checkpoint kept from before, which the log must go on from.")),
    ] = None,
) -> None:
    """Name the first line that is wrong, or what was found."""
    with one_line_errors():
        raw = None if key is None else _key(key)
        kept = None if checkpoint is None else _note(checkpoint)
        with _opened(file) as lines:
            found = _verified(lines, raw, kept)
        for line in _told(found, pinned=raw is not None, kept=kept is not None):
            print(line)


def _key(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise error("bad_key", _("the key is not 32 bytes in hex"))
    return raw


def _note(path: Path) -> str:
    with _opened(path) as file:
        raw = file.read(_MOST_NOTE_BYTES)
    try:
        return raw.decode()
    except UnicodeDecodeError as broken:
        raise error("bad_checkpoint", _("{file} is no checkpoint"), file=str(path)) from broken


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as broken:
        raise error("unreadable", _("{file} cannot be read"), file=str(path)) from broken


def _verified(lines: BinaryIO, key: bytes | None, kept: str | None) -> Verified:
    from app.audit import verify as checking

    def bounded() -> Iterator[bytes]:
        while line := lines.readline(checking.MOST_LINE_BYTES + 1):
            yield line

    try:
        return checking.verify(bounded(), key=key, kept=kept)
    except checking.ExportInvalid as wrong:
        reason = _(wrong.reason, **wrong.members)
        raise error("export_invalid", _("line {line}: {reason}"), line=wrong.line, reason=reason) from wrong


def _told(found: Verified, *, pinned: bool, kept: bool) -> list[str]:
    lines = [
        _(
            "{origin}: {size} entries, {shown} of them shown; every hash, the root and the signature hold",
            origin=found.checkpoint.origin,
            size=found.checkpoint.size,
            shown=found.shown,
        ),
        _("root {root}, signed by {key}", root=found.checkpoint.root.hex(), key=found.key.raw.hex()),
    ]
    if not pinned:
        lines.append(_("the key is the file's own word: compare it with one you got another way (--key)"))
    if kept:
        lines.append(_("the log goes on from the checkpoint that was kept"))
    return lines
