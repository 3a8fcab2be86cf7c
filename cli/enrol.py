"""`dpfl client enrol`: become a client, by an invitation's file or by options. client.enrolment does it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.i18n import _
from cli.pairing import folders_of
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from client.enrolment import Wish
    from client.policy import Policy

_TERMS = (
    *("dataset", "labels", "text_fields", "label_field", "persons", "epsilon", "delta", "epsilon_per_year"),
    *("trust", "unit", "smallest_cohort", "base_model"),
)
"""What a policy's file says."""

FolderOption = Annotated[
    Path, typer.Option("--folder", "--profile", help=_("The client's own folder, made by `enrol`."))
]
InvitationArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="INVITATION", help=_("The file of `dpfl client invite`, instead of --server and --token.")
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", help=_("File with the terms (policy.toml), instead of the options for them.")),
]
EnvironmentProxyOption = Annotated[
    bool,
    typer.Option("--use-environment-proxy", help=_("Take the proxy that HTTPS_PROXY and NO_PROXY name now.")),
]
ServerOption = Annotated[str | None, typer.Option(help=_("Address of the federation's server."))]
NameOption = Annotated[
    str | None,
    typer.Option(help=_("What the client is called; the federation sees it. Else as its data set.")),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help=_("File of JSON lines to train on; left out where another machine has it and trains.")),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help=_("Name of the data set: its privacy ledger is kept under it, and the federation sees it.")
    ),
]
TokenOption = Annotated[
    str | None,
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
LabelsOption = Annotated[str | None, typer.Option(help=_("Every label in the data, separated by commas."))]
LabelFieldOption = Annotated[str, typer.Option(help=_("The field of a line that holds its label."))]
TextFieldsOption = Annotated[
    str | None, typer.Option(help=_("The fields that a run may read as text, separated by commas."))
]
PersonsOption = Annotated[
    str | None,
    typer.Option(
        help=_("FIELD=NUMBER: what tells persons apart, most records of one; for runs that protect persons.")
    ),
]
LedgersOption = Annotated[Path | None, typer.Option(help=_("Where the data sets' ledgers are kept."))]
CertificatesOption = Annotated[
    Path | None,
    typer.Option(help=_("Certificates to trust instead of the usual; with an invitation, besides those.")),
]
ProxyOption = Annotated[str | None, typer.Option(help=_("Proxy; none is taken from the environment."))]
MemoryOption = Annotated[
    int | None, typer.Option(min=1, help=_("Memory that training may use; all of this machine's without it."))
]
UploadOption = Annotated[
    float | None, typer.Option(help=_("How fast this machine sends; runs of mixed ranks go by it."))
]
HttpOption = Annotated[bool, typer.Option("--allow-http", help=_("Allow a server without TLS."))]


def enrol(
    context: typer.Context,
    invitation: InvitationArgument = None,
    *,
    folder: FolderOption,
    server: ServerOption = None,
    name: NameOption = None,
    dataset: DatasetOption = None,
    token: TokenOption = None,
    policy: PolicyOption = None,
    labels: LabelsOption = None,
    text_fields: TextFieldsOption = None,
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
    use_environment_proxy: EnvironmentProxyOption = False,
    allow_http: HttpOption = False,
    memory_bytes: MemoryOption = None,
    upload_bytes_per_s: UploadOption = None,
) -> None:
    """Become a client of a federation: by an invitation's file, or by the options."""
    with one_line_errors():
        host = _Host.of(invitation, server, token)
        via = _proxy(host.server, proxy, from_environment=use_environment_proxy)
        wish = host.wish(_terms(context, policy), folder=folder, name=name, data=data or _asked_data(context))
        wish = replace(wish, home=ledgers, ca_file=ca_file, proxy=via, allow_http=allow_http)
        wish = replace(wish, memory_bytes=memory_bytes, upload_bytes_per_s=upload_bytes_per_s)
        _enrol(wish)


@dataclass(frozen=True)
class _Host:
    """Whom to enrol with."""

    server: str
    token: str
    ca: str | None = None
    pins: tuple[str, ...] = ()

    @classmethod
    def of(cls, invitation: Path | None, server: str | None, token: str | None) -> _Host:
        """Read the invitation, or the two options that stand in its place."""
        from client.errors import ClientError
        from client.invitation import read_invitation

        if invitation is None:
            if server is None or token is None:
                raise ClientError("bad_option", _("name an invitation's file, or --server and --token"))
            return cls(server, _secret(token))
        if server is not None:
            raise ClientError("bad_option", _("the invitation names the server: leave --server out"))
        found = read_invitation(invitation)
        found.require_fresh(datetime.now(UTC))
        return cls(found.server, found.token, found.ca, tuple(found.pins))

    def wish(self, terms: Policy, *, folder: Path, name: str | None, data: Path | None) -> Wish:
        """What is asked of it."""
        from client.enrolment import Wish

        who = Wish(
            folder=folder,
            server=self.server,
            token=self.token,
            name=name or terms.dataset,
            data=data,
            policy=terms,
        )
        return replace(who, ca_pem=self.ca, pins=self.pins)


def _proxy(server: str, named: str | None, *, from_environment: bool) -> str | None:
    from client.proxies import environment_proxy, require_proxy

    if named is not None:
        return require_proxy(named)
    return environment_proxy(server) if from_environment else None


def _terms(context: typer.Context, policy: Path | None) -> Policy:
    """The holder's terms: those of a file, or of the options, never a mixture of both."""
    from client.errors import ClientError
    from client.policy import Policy

    given = context.params
    if policy is not None:
        said = [name for name in _TERMS if _is_said(context, name)]
        if said:
            option = "--" + said[0].replace("_", "-")
            raise ClientError(
                "bad_option", _("{option} and --policy both name terms: leave one out"), option=option
            )
        return Policy.load(policy)
    terms: dict[str, object] = {"trusts": given["trust"] or None, "units": given["unit"] or None}
    terms |= {name: given[name] for name in ("epsilon", "delta", "epsilon_per_year", "smallest_cohort")}
    terms["dataset"] = _asked(given["dataset"], "--dataset", _("Name of the data set"))
    terms |= _declared(
        _asked(given["labels"], "--labels", _("Every label in the data, separated by commas")),
        _asked(given["text_fields"], "--text-fields", _("The fields that a run may read as text")),
        given["label_field"],
        given["persons"],
    )
    return _policy(terms, base_models=given["base_model"] or [])


def _is_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _asked(value: str | None, option: str, question: str) -> str:
    """An option's value; a person at a terminal is asked for what is left out."""
    from client.errors import ClientError

    if value is not None:
        return value
    if not sys.stdin.isatty():
        raise ClientError("bad_option", _("{option} is left out"), option=option)
    return str(typer.prompt(question))


def _asked_data(context: typer.Context) -> Path | None:
    """Where the data are: asked of a person who enrols by an invitation; none means on another machine."""
    if context.params["invitation"] is None or not sys.stdin.isatty():
        return None
    answer = typer.prompt(_("File of JSON lines; empty where another machine has it"), default="")
    return Path(answer).expanduser() if answer else None


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


def _enrol(wish: Wish) -> None:
    from client.enrolment import enrol as enrol_client
    from client.profile import policy_path

    profile = enrol_client(wish)
    policy, config = profile.policy, profile.config
    line = _(
        "client {client} ({name}) of {server}", client=config.client_id, name=wish.name, server=config.server
    )
    print(line)
    print(
        _(
            "data set {name}: epsilon at most {epsilon:g}, delta at most {delta:g}; terms in {terms}",
            name=policy.dataset,
            epsilon=policy.epsilon,
            delta=policy.delta,
            terms=policy_path(Path(config.home), policy.dataset),
        )
    )


def _secret(text: str) -> str:
    """Read a secret given as @FILE, so that it need not stand on a command line."""
    from client.durable import read_text

    return read_text(Path(text[1:])).strip() if text.startswith("@") else text
