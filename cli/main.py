"""The `dpfl` command. Only argument parsing lives here; each command imports what it needs when it runs."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import audit, client, federation, price, reconcile, release, run, verify
from cli.i18n import _

app = typer.Typer(
    name="dpfl",
    help=_("Federated LoRA fine-tuning under differential privacy."),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (federation.app, client.app, run.app, release.app, audit.app):
    app.add_typer(group)
app.command("price", help=_("Price a plan, without any server."))(price.price_plan)
app.command("reconcile", help=_("Compare a client's ledger with the server's mirror of it."))(
    reconcile.reconcile
)
app.command("verify-certificate", help=_("Check a certificate and compute its epsilon again, offline."))(
    verify.verify_certificate
)
app.command(
    "verify-release", help=_("Check that adapter, configuration and base model are those of the certificate.")
)(verify.verify_release)

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help=_("Data folder; otherwise DPFL_DATA, otherwise one in your user data directory.")
    ),
]


def fail(reason: object) -> NoReturn:
    """End the command with one line for a person and exit code 1."""
    print(f"dpfl: {reason}", file=sys.stderr)
    raise typer.Exit(1)


@app.command(help=_("Run the whole stack here: services, migrations, gateway, dispatcher and workers."))
def up(
    *,
    data: DataOption = None,
    host: Annotated[
        str | None,
        typer.Option(help=_("Address the gateway listens on; this machine alone without --public-url.")),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help=_("Its port; 0 takes any free one; else 8000, or that of --public-url."),
            envvar="DPFL_PORT",
            min=0,
            max=65535,
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            help=_("https://host:port by which other machines call; makes an authority and certificates."),
            envvar="DPFL_PUBLIC_URL",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help=_("Processes that compute."), min=1, max=64)] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help=_("Only dpfl's own lines on the terminal."))] = False,
) -> None:
    """Run the whole stack here: services, migrations, gateway, dispatcher and workers."""
    from cli.embedded.errors import EmbeddedError
    from cli.embedded.folder import data_folder
    from cli.embedded.up import chosen, run_stack

    try:
        choices = chosen(host=host, port=port, workers=workers, quiet=quiet, public_url=public_url)
        run_stack(data_folder(data), choices)
    except EmbeddedError as error:
        fail(error)


@app.command(help=_("Bring the database of DATABASE_URL to the newest schema."))
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema."""
    from sqlalchemy.exc import SQLAlchemyError

    from migrations.upgrade import upgrade

    url = os.environ.get("DATABASE_URL")
    if not url:
        fail(_("DATABASE_URL is not set"))
    try:
        upgrade(url)
    except SQLAlchemyError as error:
        first_line = str(error).splitlines()[0]
        fail(_("the database could not be migrated: {reason}", reason=first_line))


@app.command(
    help=_("Say what is right and what is wrong with this installation, or with a client's way out.")
)
def doctor(
    data: DataOption = None,
    client_of: Annotated[
        Path | None,
        typer.Option(
            "--client",
            help=_("A client's folder or an invitation's file: examine the way to its server instead."),
        ),
    ] = None,
    proxy: Annotated[str | None, typer.Option(help=_("For an invitation: through this proxy."))] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help=_("For an invitation: certificates to trust besides its own."))
    ] = None,
) -> None:
    """Say what is right and what is wrong with this installation, or with a client's way out."""
    if client_of is not None:
        from cli.client_doctor import examine_client

        if not examine_client(client_of, proxy=proxy, extra_ca_file=ca_file):
            raise typer.Exit(1)
        return
    from cli.doctor import examine
    from cli.embedded.folder import data_folder

    if not examine(data_folder(data)):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
