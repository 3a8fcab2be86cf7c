"""`dpfl run`: plan, price, start and follow a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.access import KeyFileOption, ServerOption, open_session
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from cli.answers import Run
    from client.session import Reply, Session

app = typer.Typer(name="run", help=_("Plan, price, start and follow runs."), no_args_is_help=True)

RunArgument = Annotated[UUID, typer.Argument(help=_("The run."))]
_HELD_S = 20.0


@app.command(help=_("Write a manifest for a base model, to be edited: its tensors and digest are filled in."))
def template(
    *,
    locator: Annotated[str, typer.Option("--base-model", help=_("package:NAME/FOLDER, or a folder."))],
    layers: Annotated[str, typer.Option(help=_("Numbers of the layers that get an adapter, e.g. 4,5."))],
    clients: Annotated[int, typer.Option(min=1, help=_("How many clients take part."))],
    labels: Annotated[str, typer.Option(help=_("The labels, in order."))] = "ham,spam",
    text_fields: Annotated[
        str, typer.Option(help=_("Fields of a record that hold its text."))
    ] = "subject,body",
    rank: Annotated[int, typer.Option(min=1, help=_("Rank of the adapter."))] = 8,
    ranks: Annotated[str | None, typer.Option(help=_("Ranks of clients, up to that, e.g. 4,8."))] = None,
    rounds: Annotated[int, typer.Option(min=1, help=_("Rounds."))] = 8,
    local_steps: Annotated[int, typer.Option(min=1, help=_("Steps of each client a round."))] = 8,
    epsilon: Annotated[float, typer.Option(help=_("Privacy of one record for the whole run."))] = 2.0,
    delta: Annotated[float, typer.Option(help=_("Its delta."))] = 1e-6,
    rate: Annotated[float, typer.Option(help=_("Probability of a record to be in a step."))] = 0.1,
    divisor: Annotated[float, typer.Option(help=_("Constant by which a step's sum is divided."))] = 64.0,
    method: Annotated[str, typer.Option(help=_("How LoRA updates are averaged, e.g. flexlora."))] = "ffa",
    seed: Annotated[int, typer.Option(min=0, help=_("Public seed of the adapter's start."))] = 1,
) -> None:
    """Print a manifest whose model part is complete."""
    quiet_libraries()
    with one_line_errors():
        from cli.templates import Shape, manifest_for

        shape = Shape(
            labels=labels.split(","),
            text_fields=text_fields.split(","),
            layers=_numbers(layers),
            rank=rank,
            ranks=_numbers(ranks) if ranks else None,
            method=method,
            seed=seed,
        )
        plan = manifest_for(locator, shape, clients=clients)
        plan["training"]["local_steps"], plan["rounds"] = local_steps, rounds
        plan["privacy"] |= {"epsilon": epsilon, "delta": delta, "divisor": divisor}
        plan["privacy"]["examples"] = {"kind": "poisson", "rate": rate}
        print(json.dumps(plan, indent=2, ensure_ascii=False))


@app.command(help=_("Create a run, as a draft, from a manifest."))
def create(
    *,
    manifest: Annotated[Path, typer.Argument(help=_("The manifest, a JSON file."))],
    client: Annotated[list[UUID], typer.Option("--client", help=_("A client that takes part; repeat it."))],
    name: Annotated[str | None, typer.Option(help=_("What people call the run."))] = None,
    from_release: Annotated[UUID | None, typer.Option(help=_("Start from this release."))] = None,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Send the plan; a plan that cannot be sound is refused with its reason."""
    with one_line_errors():
        from cli.answers import Made
        from client.durable import read_text
        from client.wire import parse, read_json

        body: dict[str, Any] = {
            "manifest": read_json(read_text(manifest).encode(), what="manifest"),
            "client_ids": [str(one) for one in client],
        }
        if name is not None:
            body["name"] = name
        if from_release is not None:
            body["from_release_id"] = str(from_release)
        with open_session(server, key_file) as session:
            print(parse(Made, session.post("/v1/runs", body).json("run"), what="run").id)


@app.command(help=_("Have a run priced, and wait for the price."))
def price(run_id: RunArgument, server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Ask for the price job and show what it found."""
    with one_line_errors():
        with open_session(server, key_file) as session:
            session.post(f"/v1/runs/{run_id}/price", None)
            run = _wait(session, run_id, leave="pricing")
        _show(run)
        if run.state == "refused":
            from client.errors import ClientError

            raise ClientError(run.reason_code or "refused", _("the plan was refused: {why}"), why=run.reason)


@app.command(help=_("Start a priced run: its manifest is fixed from now on."))
def start(run_id: RunArgument, server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Start the run."""
    _act(run_id, "start", server, key_file)


@app.command(help=_("Open no further round until the run is resumed."))
def pause(run_id: RunArgument, server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Pause the run."""
    _act(run_id, "pause", server, key_file)


@app.command(help=_("Go on with a paused run."))
def resume(run_id: RunArgument, server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Resume the run."""
    _act(run_id, "resume", server, key_file)


@app.command(help=_("End a run for good."))
def stop(
    run_id: RunArgument,
    reason: Annotated[str, typer.Option(help=_("Why; the run shows it."))],
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Stop the run."""
    _act(run_id, "stop", server, key_file, body={"reason": reason})


@app.command(help=_("Show a run; with --follow, until it ends."))
def show(
    run_id: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help=_("Go on until the run ends."))] = False,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Print the run's state, and each change of it."""
    with one_line_errors(), open_session(server, key_file) as session:
        run = _read(session, run_id)
        _show(run)
        while follow and run.state not in {"finished", "aborted", "refused"}:
            version = run.version
            run = _read(session, run_id, since=version)
            if run.version != version:
                _show(run)


@app.command(help=_("Say what a plan protects, from whom, and how well; --json for programs."))
def explain(
    run_id: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help=_("Print all of it as JSON."))] = False,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Print the server's explanation of a plan, warnings first."""
    with one_line_errors():
        from cli.answers import Explanation
        from client.wire import parse

        with open_session(server, key_file) as session:
            answer = session.get(f"/v1/plans/{run_id}/explanation").json("explanation")
        told = parse(Explanation, answer, what="explanation")
        if as_json:
            print(json.dumps(answer, indent=2, ensure_ascii=False))
            return
        for warning in told.warnings:
            print(_("warning: {text}", text=warning.text))
        for point in told.nist_sp_800_226:
            print(f"{point.title}: {point.text}")
        for part in (told.attack, told.noise_to_signal):
            if part is not None:
                print(part.text)


def _numbers(text: str) -> list[int]:
    from client.errors import ClientError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ClientError(
            "bad_options", _("--layers takes whole numbers, as in 4,5: {text} is none"), text=text
        ) from error


def _act(
    run_id: UUID, verb: str, server: str | None, key_file: Path | None, *, body: dict[str, Any] | None = None
) -> None:
    with one_line_errors(), open_session(server, key_file) as session:
        _show(_understood(session.post(f"/v1/runs/{run_id}/{verb}", body)))


def _read(session: Session, run_id: UUID, *, since: int | None = None) -> Run:
    query = None if since is None else {"wait": f"{_HELD_S:g}", "since": str(since)}
    return _understood(session.get(f"/v1/runs/{run_id}", query=query, wait_s=_HELD_S))


def _understood(reply: Reply) -> Run:
    from cli.answers import Run
    from client.wire import parse

    return parse(Run, reply.json("run"), what="run")


def _wait(session: Session, run_id: UUID, *, leave: str) -> Run:
    run = _read(session, run_id)
    while run.state == leave:
        run = _read(session, run_id, since=run.version)
    return run


def _show(run: Run) -> None:
    print(_("run {id} ({name}): {state}", id=run.id, name=run.name, state=run.state))
    if run.reason:
        print(_("because: {reason}", reason=run.reason))
    if run.shortfall is not None:
        print(
            _("{population}: {amounts_in} {asked} asked, {left} left of {ceiling}", **dict(run.shortfall)),
        )
    cost = run.price
    if cost is not None and cost.epsilon is not None:
        print(
            _(
                "noise multiplier {z}, epsilon {epsilon} at delta {delta}",
                z=cost.noise_multiplier,
                epsilon=cost.epsilon,
                delta=cost.delta,
            )
        )
