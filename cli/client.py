"""`dpfl client`: enrol, fetch, train, submit, run, status. Parses arguments; the client package works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.access import client_session
from cli.evaluate import evaluate
from cli.i18n import _
from cli.invite import invite
from cli.pairing import attach, card, folders_of, ledger_moved
from cli.reporting import one_line_errors, quiet_libraries
from cli.rotating import rotate_key

if TYPE_CHECKING:
    from client.policy import Policy
    from client.profile import Profile

app = typer.Typer(
    name="client", help=_("Train on a private data set; only noised updates leave."), no_args_is_help=True
)

app.command(help=_("Invite one training client: an operator's command."))(invite)
app.command(help=_("Write the card by which another machine can train for this client."))(card)
app.command(help=_("Train here for a client that is enrolled on another machine, by its card."))(attach)
app.command("rotate-key", help=_("Give this client a new key, vouched for by its present one."))(rotate_key)
app.command("ledger-moved", help=_("Say that the ledger was moved here and none is left where it was."))(
    ledger_moved
)

app.command(help=_("Measure a `fedsa` release and this client's own model on held-out data; stays here."))(
    evaluate
)

FolderOption = Annotated[
    Path, typer.Option("--folder", "--profile", help=_("The client's own folder, made by `enrol`."))
]
RoundFolder = Annotated[
    Path | None,
    typer.Option("--round", help=_("Folder of the round; without it, one inside the client's own.")),
]


ServerOption = Annotated[str, typer.Option(help=_("Address of the federation's server."))]
NameOption = Annotated[str, typer.Option(help=_("What the client is called; the federation sees it."))]
DataOption = Annotated[
    Path | None,
    typer.Option(help=_("File of JSON lines to train on; left out where another machine has it and trains.")),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        help=_("Name of the data set: its privacy ledger is kept under it, and the federation sees it.")
    ),
]
TokenOption = Annotated[
    str,
    typer.Option(envvar="DPFL_ENROLMENT_TOKEN", help=_("The enrolment token, or @FILE."), show_envvar=True),
]
EpsilonOption = Annotated[float, typer.Option(min=0, help=_("Ceiling of epsilon for all runs together."))]
DeltaOption = Annotated[float, typer.Option(min=0, max=1, help=_("Ceiling of delta for all runs together."))]
TrustOption = Annotated[list[str] | None, typer.Option(help=_("Trust that is allowed; `local` by default."))]
UnitOption = Annotated[
    list[str] | None,
    typer.Option(
        help=_(
            "Whose data a run must protect: example, person or client; all three by default. The ceiling "
            "holds for the finest; a run for a coarser one has to have the relation replace_one."
        )
    ),
]
YearOption = Annotated[
    float | None, typer.Option(min=0, help=_("Ceiling of epsilon for what is committed in 365 days."))
]
CohortOption = Annotated[int, typer.Option(min=1, help=_("Refuse rounds that may have fewer clients."))]
BaseModelOption = Annotated[
    list[str] | None, typer.Option(help=_("NAME=FOLDER of a base model that is in no package."))
]
LabelsOption = Annotated[str, typer.Option(help=_("Every label in the data, separated by commas."))]
LabelFieldOption = Annotated[str, typer.Option(help=_("The field of a line that holds its label."))]
TextFieldsOption = Annotated[
    str, typer.Option(help=_("The fields that a run may read as text, separated by commas."))
]
PersonsOption = Annotated[
    str | None,
    typer.Option(
        help=_("FIELD=NUMBER: what tells persons apart, most records of one; for runs that protect persons.")
    ),
]
LedgersOption = Annotated[Path | None, typer.Option(help=_("Where the data sets' ledgers are kept."))]
CertificatesOption = Annotated[
    Path | None, typer.Option(help=_("Certificates to trust instead of the usual."))
]
ProxyOption = Annotated[str | None, typer.Option(help=_("Proxy; none is taken from the environment."))]
MemoryOption = Annotated[
    int | None, typer.Option(min=1, help=_("Memory that training may use; all of this machine's without it."))
]
UploadOption = Annotated[
    float | None, typer.Option(help=_("How fast this machine sends; runs of mixed ranks go by it."))
]
HttpOption = Annotated[bool, typer.Option("--allow-http", help=_("Allow a server without TLS."))]


@app.command(help=_("Become a client of a federation, under the terms given here."))
def enrol(
    *,
    server: ServerOption,
    name: NameOption,
    dataset: DatasetOption,
    folder: FolderOption,
    token: TokenOption,
    labels: LabelsOption,
    text_fields: TextFieldsOption,
    label_field: LabelFieldOption = "label",
    persons: PersonsOption = None,
    data: DataOption = None,
    epsilon: EpsilonOption = 8.0,
    delta: DeltaOption = 1e-5,
    epsilon_per_year: YearOption = None,
    trust: TrustOption = None,
    unit: UnitOption = None,
    smallest_cohort: CohortOption = 2,
    base_model: BaseModelOption = None,
    ledgers: LedgersOption = None,
    ca_file: CertificatesOption = None,
    proxy: ProxyOption = None,
    allow_http: HttpOption = False,
    memory_bytes: MemoryOption = None,
    upload_bytes_per_s: UploadOption = None,
) -> None:
    """Become a client of a federation, under the terms given here."""
    with one_line_errors():
        from client.enrolment import Wish
        from client.enrolment import enrol as enrol_client

        terms: dict[str, object] = {"dataset": dataset, "epsilon": epsilon, "delta": delta, "trusts": trust}
        terms |= {"epsilon_per_year": epsilon_per_year, "units": unit, "smallest_cohort": smallest_cohort}
        terms |= _declared(labels, text_fields, label_field, persons)
        policy, secret = _policy(terms, base_models=base_model or []), _secret(token)
        who = Wish(folder=folder, server=server, token=secret, name=name, data=data, policy=policy)
        who = replace(who, memory_bytes=memory_bytes, upload_bytes_per_s=upload_bytes_per_s)
        wish = replace(who, home=ledgers, ca_file=ca_file, proxy=proxy, allow_http=allow_http)
        _say_enrolled(enrol_client(wish), name=name)


def _declared(labels: str, text_fields: str, label_field: str, persons: str | None) -> dict[str, object]:
    """What the holder declares of the data; a run that asks for anything else is refused."""
    from client.errors import ClientError

    field, _equals, most = (persons or "").rpartition("=")
    if persons is not None and not (field and most.isdecimal()):
        raise ClientError("bad_option", _("--persons wants FIELD=NUMBER"))
    return {
        "labels": labels.split(","),
        "text_fields": text_fields.split(","),
        "label_field": label_field,
        "person_field": field or None,
        "person_records": int(most) if most else None,
    }


def _policy(terms: dict[str, object], *, base_models: list[str]) -> Policy:
    """Make the policy; what is not given keeps the policy's own default."""
    from client.policy import Policy

    given = {name: value for name, value in terms.items() if value is not None}
    return Policy.of(**given, base_model_folders=folders_of(base_models))


def _say_enrolled(profile: Profile, *, name: str) -> None:
    from client.profile import policy_path

    policy, config = profile.policy, profile.config
    print(_("client {client} ({name}) of {server}", client=config.client_id, name=name, server=config.server))
    print(
        _(
            "data set {name}: epsilon at most {epsilon:g}, delta at most {delta:g}; terms in {terms}",
            name=policy.dataset,
            epsilon=policy.epsilon,
            delta=policy.delta,
            terms=policy_path(Path(config.home), policy.dataset),
        )
    )


@app.command(help=_("Bring the open round here, if the policy allows its run. Needs a network, no data."))
def fetch(folder: FolderOption, to: RoundFolder = None) -> None:
    """Bring the open round here, if the policy allows its run. Needs a network, no data."""
    with one_line_errors():
        from client.asking import list_assignments
        from client.errors import ClientError
        from client.profile import Profile
        from client.rounds import fetch as fetch_round

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            waiting = list_assignments(session, wait_s=0.0)
            if not waiting:
                raise ClientError("no_open_round", _("no open round waits for this client"))
            files = fetch_round(profile, session, waiting[0], into=to)
            print(
                _(
                    "round {number} of {rounds}: {folder}",
                    number=waiting[0].number,
                    rounds=waiting[0].rounds,
                    folder=files.folder,
                )
            )


@app.command(help=_("Train the fetched round. Needs the data, no network."))
def train(folder: FolderOption, at: RoundFolder = None) -> None:
    """Train the fetched round. Needs the data, no network."""
    quiet_libraries()
    with one_line_errors():
        from client.profile import Profile
        from client.round_files import RoundFiles
        from client.rounds import train as train_round
        from client.workbench import Workbench

        profile = Profile.open(folder)
        with profile.locked():
            files = RoundFiles(at or newest_round(profile))
            train_round(profile, files, Workbench(), on_step=lambda _done, _steps: None)
            print(_("update ready: {path}", path=files.update_path))


@app.command(
    help=_("Send the trained update: these bytes and no others, for ever. Needs a network, no data.")
)
def submit(folder: FolderOption, at: RoundFolder = None) -> None:
    """Send the trained update: these bytes and no others, for ever. Needs a network, no data."""
    with one_line_errors():
        from client.profile import Profile
        from client.round_files import RoundFiles
        from client.rounds import submit as submit_round

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            receipt = submit_round(profile, session, RoundFiles(at or newest_round(profile)))
            print(
                _(
                    "received: update {update}, sha256 {digest}",
                    update=receipt.update_id,
                    digest=receipt.sha256,
                )
            )


@app.command(
    help=_("Serve rounds until the run ends; several clients share one base model and train in turn.")
)
def run(
    folder: Annotated[
        list[Path], typer.Option("--folder", "--profile", help=_("A client's own folder; may be repeated."))
    ],
    once: Annotated[bool, typer.Option("--once", help=_("End after one round."))] = False,
    run_id: Annotated[
        str | None, typer.Option("--run", help=_("Serve this run only, until it ends."))
    ] = None,
    save_updates: Annotated[Path | None, typer.Option(help=_("Keep a copy of each update there."))] = None,
    order_seed: Annotated[
        int | None, typer.Option(help=_("Repeat the order of examples; only under trust `none`."))
    ] = None,
) -> None:
    """Serve rounds until the run ends; several clients share one base model and train in turn."""
    quiet_libraries()
    with one_line_errors():
        from contextlib import ExitStack

        from client.profile import Profile
        from client.serving import Seat, Service
        from client.watching import watcher_for
        from client.workbench import Workbench

        with ExitStack() as held:
            watcher = watcher_for()
            held.callback(watcher.close)
            seats = []
            for path in folder:
                profile = Profile.open(path)
                held.enter_context(profile.locked())
                session = held.enter_context(client_session(profile))
                seats.append(Seat(profile, session, run_id=run_id))
            bench = Workbench(order_seed=order_seed)
            Service(seats, trainer=bench, watcher=watcher, once=once, save_updates=save_updates).run()


@app.command("id", help=_("Print the client's identifier, by which runs name it."))
def print_id(folder: FolderOption) -> None:
    """Print it alone, for scripts."""
    with one_line_errors():
        from client.profile import Profile

        print(Profile.open(folder).config.client_id)


@app.command(
    help=_("Show the data set's ledger: what is spent (rounded up) and what is left (rounded down).")
)
def status(folder: FolderOption) -> None:
    """Show the data set's ledger: what is spent (rounded up) and what is left (rounded down)."""
    with one_line_errors():
        from client.profile import Profile
        from client.standing import status_lines

        for line in status_lines(Profile.open(folder)):
            print(line)


@app.command(help=_("Sign that nothing was sent for a run, so that its budget is given back."))
def disclaim(
    folder: FolderOption, run_id: Annotated[str, typer.Option("--run", help=_("A run that ended."))]
) -> None:
    """Sign that nothing was sent for a run, so that its budget is given back."""
    with one_line_errors():
        from client.disclaiming import disclaim as disclaim_run
        from client.profile import Profile

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            disclaim_run(profile, session, run_id)
            print(_("run {run}: its budget is given back, and nothing will ever be sent for it", run=run_id))


def newest_round(profile: Profile) -> Path:
    """The round that was fetched last into the client's own folder."""
    from client.errors import ClientError

    found = sorted(
        (profile.folder / "rounds").glob("*/*/assignment.json"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise ClientError("no_round", _("{path} holds no fetched round"), path=str(profile.folder))
    return found[-1].parent


def _secret(text: str) -> str:
    """Read a secret given as @FILE, so that it need not stand on a command line."""
    from client.durable import read_text

    return read_text(Path(text[1:])).strip() if text.startswith("@") else text
