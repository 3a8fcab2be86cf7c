"""`dpfl release export`: a published adapter as a folder that PEFT, transformers or vLLM loads, with a card.

The folder appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.access import KeyFileOption, ProfileOption, ServerOption, open_session
from cli.documents import ADAPTER, CERTIFICATE, CONFIG, error, read
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from cli.card import Form

SERVED_RANKS = (8, 16, 32, 64)


class Target(StrEnum):
    """Who is to load the folder."""

    PEFT = "peft"  # the release as it is, or at another rank
    MERGED = "merged"  # transformers alone
    VLLM = "vllm"  # one rank, no module trained whole


def export(
    source: Annotated[
        str, typer.Argument(help=_("A release's id, or a folder that `dpfl release pull` wrote."))
    ],
    *,
    target: Annotated[Target, typer.Option("--for", help=_("What is to load it."))],
    to: Annotated[Path, typer.Option("--to", help=_("Folder to write; it must not exist yet."))],
    rank: Annotated[
        int | None, typer.Option(help=_("One rank for all modules: 8, 16, 32 or 64; what it costs is said."))
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help=_("Base model for `merged`: package:NAME/FOLDER, or a folder."))
    ] = None,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
    profile: ProfileOption = None,
) -> None:
    """Write a release in the form that another program loads, with a model card and its certificate."""
    quiet_libraries()
    with one_line_errors():
        _require_options(target, to, rank=rank, base_model=base_model)
        with _pulled(source, server, key_file, profile) as folder, _whole(to) as made:
            form = _write(target, folder, made, rank=rank, base_model=base_model)
        print(_("{folder}: {form}, relative error {error}", folder=to, form=form.name, error=_shown(form)))
        for name in form.left_out:
            print(_("left out, so this is another model than the release: {tensor}", tensor=name))


def _require_options(target: Target, to: Path, *, rank: int | None, base_model: str | None) -> None:
    if to.exists() or to.is_symlink():
        raise error("output_exists", _("{path} exists already: name a new folder"), path=str(to))
    if rank is not None and rank not in SERVED_RANKS:
        raise error("rank_refused", _("--rank takes 8, 16, 32 or 64: {rank} is none"), rank=rank)
    if rank is not None and target is Target.MERGED:
        raise error("bad_options", _("a merged model has no rank: leave --rank out"))
    if base_model is not None and target is not Target.MERGED:
        raise error("bad_options", _("--base-model is for merged models alone"))


@contextmanager
def _pulled(source: str, server: str | None, key_file: Path | None, profile: Path | None) -> Iterator[Path]:
    """The release's folder; that of an id lives as long as it is needed."""
    from cli.release import pull_release

    if Path(source).is_dir():
        yield Path(source)
        return
    try:
        release_id = UUID(source)
    except ValueError as failure:
        raise error(
            "no_release", _("{source} is neither a folder nor a release's id"), source=source
        ) from failure
    with tempfile.TemporaryDirectory(prefix="dpfl-release-") as folder:
        with open_session(server, key_file, profile) as session:
            pull_release(session, release_id, Path(folder))
        yield Path(folder)


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A folder beside `to` that gets its name when everything is in it, and else is gone."""
    from client.durable import sync_folder, unwritable

    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    except OSError as failure:
        raise unwritable(to, failure) from failure
    try:
        made = beside / to.name
        made.mkdir()
        yield made
        _settle(made)
        made.rename(to)
        sync_folder(to.parent)
    except OSError as failure:
        raise unwritable(to, failure) from failure
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _settle(made: Path) -> None:
    """Bring every file to the disk, readable like the rest of what this account writes for others."""
    from client.durable import sync_file, sync_folder

    for path in made.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            sync_file(file.fileno())
    sync_folder(made)


def _write(target: Target, folder: Path, made: Path, *, rank: int | None, base_model: str | None) -> Form:
    from cli.binding import require_bound
    from cli.card import model_card
    from client.durable import write_whole
    from modelling.errors import ModelRefused

    certificate, config = read(folder / CERTIFICATE), read(folder / CONFIG)
    require_bound(folder, certificate)
    try:
        if target is Target.MERGED:
            form = _merged(folder, made, certificate, config, base_model=base_model)
        elif target is Target.PEFT and rank is None:
            form = _copied(folder, made, config)
        else:
            form = _uniform(target, folder, made, rank=rank)
    except ModelRefused as failure:
        raise error(failure.code, _("the release cannot be exported: {why}"), why=str(failure)) from failure
    try:
        card = model_card(certificate, config, form)
    except (KeyError, TypeError, AttributeError) as failure:
        raise error(
            "certificate_invalid", _("the certificate lacks what a model card has to say")
        ) from failure
    write_whole(made / "README.md", card.encode(), mode=0o644)
    write_whole(made / CERTIFICATE, (folder / CERTIFICATE).read_bytes(), mode=0o644)
    return form


def _copied(folder: Path, made: Path, config: dict[str, Any]) -> Form:
    """The release's own bytes, which its certificate names."""
    from cli.card import Form

    for name in (ADAPTER, CONFIG):
        shutil.copyfile(folder / name, made / name)
    return Form("peft", rank=config["r"], alpha=config["lora_alpha"], relative_error=0.0, is_certified=True)


def _uniform(target: Target, folder: Path, made: Path, *, rank: int | None) -> Form:
    from cli.card import Form
    from modelling.exporting import read_config, write_uniform

    found = write_uniform(folder, made, rank=rank, with_heads=target is Target.PEFT)
    config = read_config(made)
    return Form(
        str(target),
        rank=config["r"],
        alpha=config["lora_alpha"],
        relative_error=found.projection.relative_error,
        left_out=found.left_out,
    )


def _merged(
    folder: Path,
    made: Path,
    certificate: dict[str, Any],
    config: dict[str, Any],
    *,
    base_model: str | None,
) -> Form:
    from cli.binding import certified_manifest
    from cli.card import Form
    from modelling.base import locate_base_model
    from modelling.exporting import write_merged
    from modelling.spec import ModelSpec

    spec = ModelSpec.from_manifest(certified_manifest(folder, certificate))
    locator = base_model or spec.base.locator
    if base_model is None and not locator.startswith("package:"):  # a server names no folder here
        raise error(
            "base_model_missing",
            _("name the folder of the base model {name}: --base-model"),
            name=spec.base.name,
        )
    found = write_merged(
        dataclasses.replace(spec, base=dataclasses.replace(spec.base, locator=locator)),
        locate_base_model(locator),
        folder,
        made,
    )
    error_found = found.projection.relative_error
    return Form("merged", rank=config["r"], alpha=config["lora_alpha"], relative_error=error_found)


def _shown(form: Form) -> str:
    return f"{form.relative_error:.3g}"
