"""`dpfl federation init`: organisations, invitations, proposed policies and a priced plan for many silos.

Everything is found again by its name, so the command may be repeated: it makes what is missing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.access import CaFileOption, KeyFileOption, ServerOption, open_session
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from cli.silos import Federation, Plan, Silo
    from client.session import Session

app = typer.Typer(name="federation", help=_("Set a whole federation up from one file."), no_args_is_help=True)
_HOUR_S = 3600


@app.command(
    help=_("Make organisations, invitations, policies and a priced plan, as far as they are missing.")
)
def init(
    *,
    file: Annotated[Path, typer.Argument(help=_("The federation's file (YAML)."))],
    to: Annotated[Path, typer.Option("--to", help=_("Folder for invitations, policies and the plan."))],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help=_("Only say what would be made; ask, and write nothing."))
    ] = False,
    next_pin: Annotated[
        str | None, typer.Option(help=_("Pin of the key that the server will have next."))
    ] = None,
    ca_file: CaFileOption = None,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Make what is missing of a federation."""
    quiet_libraries()
    with one_line_errors():
        from cli.silos import read_federation

        federation = read_federation(file)
        with open_session(server, key_file, ca_file=ca_file) as session:
            work = Initialisation(federation, session, to, dry_run=dry_run, next_pin=next_pin)
            work.do()


class Initialisation:
    """One pass over a federation's file."""

    def __init__(
        self, federation: Federation, session: Session, folder: Path, *, dry_run: bool, next_pin: str | None
    ) -> None:
        self._federation = federation
        self._session = session
        self._folder = folder
        self._dry_run = dry_run
        self._next_pin = next_pin

    def do(self) -> None:
        """Make what is missing, in an order in which each thing has what it needs."""
        from cli.answers import Client, Organisation, every
        from client.durable import private_folder
        from client.wire import parse

        plan = self._federation.plan
        manifest = None if plan is None else _manifest(plan, self._federation)
        known = {
            one.name: str(one.id)
            for one in (
                parse(Organisation, item, what="organisation")
                for item in every(self._session, "/v1/organisations")
            )
        }
        clients = [parse(Client, item, what="client") for item in every(self._session, "/v1/clients")]
        if not self._dry_run:
            private_folder(self._folder)
        enrolled: list[str] = []
        for silo in self._federation.silos:
            owner = self._organisation(silo, known.get(silo.name))
            its = [one for one in clients if str(one.organisation_id) == owner]
            named = [one for one in its if one.name == silo.data] or its
            self._policy(silo)
            if len(named) == 1:
                enrolled.append(str(named[0].id))
                self._say("enrolled", silo.name)
            else:
                self._invitation(silo, owner)
        if plan is not None and manifest is not None:
            self._write_plan(plan, manifest)
            self._run(plan, manifest, enrolled)

    def _organisation(self, silo: Silo, found: str | None) -> str | None:
        from cli.answers import Made
        from client.wire import parse

        if found is not None:
            self._say("kept", _("organisation {name}", name=silo.name))
            return found
        self._say("made", _("organisation {name}", name=silo.name))
        if self._dry_run:
            return None
        body = {"name": silo.name, "region": self._federation.region_of(silo)}
        made = self._session.post("/v1/organisations", body).json("organisation")
        return str(parse(Made, made, what="organisation").id)

    def _policy(self, silo: Silo) -> None:
        from client.durable import private_folder
        from client.errors import ClientError
        from client.policy import Policy

        path, proposed = self._folder / silo.folder / "policy.toml", self._federation.policy_of(silo)
        try:
            is_there = path.exists() and Policy.load(path) == proposed
        except ClientError:
            is_there = False
        self._say("kept" if is_there else "made", str(path))
        if not is_there and not self._dry_run:
            private_folder(path.parent)
            proposed.save(path)

    def _invitation(self, silo: Silo, owner: str | None) -> None:
        from cli.invite import Invited

        path = self._folder / silo.folder / "invitation.json"
        if self._is_good(path):
            self._say("kept", str(path))
            return
        self._say("made", str(path))
        if self._dry_run or owner is None:
            return
        federation = self._federation
        terms: dict[str, object] = {
            "organisation_id": owner,
            "region": federation.region_of(silo),
            "jurisdiction": federation.jurisdiction_of(silo),
            "budget": {"kind": "basic", **federation.budget.model_dump()},
            "expires_in_s": federation.expires_hours * _HOUR_S,
        }
        Invited(owner, silo.name, terms=terms).write_invitation(self._session, path, next_pin=self._next_pin)

    def _is_good(self, path: Path) -> bool:
        """Whether an invitation is there that the server would still take."""
        from client.errors import ClientError
        from client.invitation import read_invitation

        try:
            found = read_invitation(path)
            found.require_fresh(datetime.now(UTC))
        except ClientError:
            return False
        reply = self._session.public("POST", "/v1/enrolments/check", payload={"enrolment_token": found.token})
        return found.server == self._session.server and reply.status // 100 == 2

    def _write_plan(self, plan: Plan, manifest: dict[str, Any]) -> None:
        """The manifest, and what it costs by this machine's own accountants."""
        from cli.price import priced
        from client.durable import write_whole

        asked = dict.fromkeys(("cap", "population", "segments", "z"))
        asked |= {"unit": "example", "trust": "local", "sampling": "poisson", "q": plan.rate}
        asked |= {"steps": plan.rounds * plan.local_steps, "calibrate": plan.epsilon}
        price = priced(asked, delta=plan.delta, relation="zero_out")
        for name, content in (("plan.json", manifest), ("price.json", price)):
            self._say("made", str(self._folder / name))
            if not self._dry_run:
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                write_whole(self._folder / name, text.encode())
        print(
            _(
                "priced: noise multiplier {z}, epsilon {epsilon:.4f} at delta {delta:g}",
                z=price["noise_multipliers"][0],
                epsilon=price["epsilon_pld"],
                delta=plan.delta,
            )
        )

    def _run(self, plan: Plan, manifest: dict[str, Any], enrolled: list[str]) -> None:
        """Create the run and have the server price it, once everybody is there."""
        from cli.answers import Made, Run, every
        from client.wire import parse

        runs = (parse(Run, item, what="run") for item in every(self._session, "/v1/runs"))
        found = next((one for one in runs if one.name == plan.name), None)
        if found is not None:
            self._say(
                "kept", _("run {id} ({name}): {state}", id=found.id, name=found.name, state=found.state)
            )
            return
        missing = len(self._federation.silos) - len(enrolled)
        if missing:
            print(
                _(
                    "{missing} of {all} have yet to enrol; then the same command creates the run",
                    missing=missing,
                    all=len(self._federation.silos),
                )
            )
            return
        self._say("made", _("run {name}", name=plan.name))
        if not self._dry_run:
            body = {"manifest": manifest, "client_ids": enrolled, "name": plan.name}
            made = parse(Made, self._session.post("/v1/runs", body).json("run"), what="run")
            self._session.post(f"/v1/runs/{made.id}/price", None)
            print(
                _(
                    "`dpfl run show {id} --follow` shows its price, `dpfl run start {id}` starts it",
                    id=made.id,
                )
            )

    def _say(self, what: str, thing: str) -> None:
        words = {
            "made": _("to make") if self._dry_run else _("made"),
            "kept": _("is there"),
            "enrolled": _("enrolled"),
        }
        print(f"{words[what]}: {thing}")


def _manifest(plan: Plan, federation: Federation) -> dict[str, Any]:
    """The run's manifest, as `dpfl run template` makes it."""
    from cli.templates import Shape, manifest_for

    terms = federation.policy
    shape = Shape(
        labels=terms.labels,
        text_fields=terms.text_fields,
        layers=plan.layers,
        rank=plan.rank,
        method=plan.method,
        seed=plan.seed,
    )
    made = manifest_for(plan.base_model, shape, clients=len(federation.silos))
    made["task"]["label_field"] = terms.label_field
    made["training"]["local_steps"], made["rounds"] = plan.local_steps, plan.rounds
    made["privacy"] |= {"epsilon": plan.epsilon, "delta": plan.delta, "divisor": plan.divisor}
    made["privacy"]["examples"] = {"kind": "poisson", "rate": plan.rate}
    made["use"] = None if plan.use is None else plan.use.model_dump()
    return made
