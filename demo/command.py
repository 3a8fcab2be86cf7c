"""What both demos are as commands: their options, a folder made anew, and one line for what stops them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Protocol

from rich.console import Console

from cli.embedded.errors import EmbeddedError
from client.errors import ClientError
from demo.federation import FederationError
from demo.folder import make_anew
from demo.mailboxes import MailboxFailed


class Demonstration(Protocol):
    """A demo in its own folder."""

    def __init__(self, folder: Path, *, epsilon: float, seed: int, console: Console) -> None:
        """Take what a person chose."""

    def train(self) -> float:
        """Run the server and its federated runs; returns their seconds."""

    def evaluate(self, train_s: float, began: float) -> None:
        """Score what was published, and write everything down."""


def run(kind: type[Demonstration], *, prog: str, description: str | None, out: str) -> int:
    """Run the demo with the command line's options; a refusal is one line and exit code 1."""
    options = _options(prog=prog, description=description, out=out)
    console = Console()
    began = time.monotonic()
    folder: Path = options.out.resolve()
    try:
        make_anew(folder)
        demo = kind(folder, epsilon=options.epsilon, seed=options.seed, console=console)
        demo.evaluate(demo.train(), began)
    except (FederationError, MailboxFailed, ClientError, EmbeddedError) as error:
        console.print(f"the demo stopped: {error}", style="bold red", highlight=False, markup=False)
        return 1
    return 0


def _options(*, prog: str, description: str | None, out: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--epsilon", type=float, default=8.0, help="budget of the private run (delta 1e-5)")
    parser.add_argument("--seed", type=int, default=1, help="initialisation, order and canaries; never noise")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of results, made anew")
    options = parser.parse_args()
    if not 0.1 <= options.epsilon <= 100:
        parser.error("--epsilon must lie between 0.1 and 100")
    return options
