"""The steps of a client's round, one by one."""

from client.asking import list_assignments
from client.ledger import Contribution
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import Trainer, fetch, train
from client.session import Session


def fetched(profile: Profile, session: Session) -> RoundFiles:
    """Download the first round that waits for this client."""
    return fetch(profile, session, list_assignments(session, wait_s=0)[0])


def made(profile: Profile, files: RoundFiles, trainer: Trainer) -> Contribution:
    """Prepare its update, without a progress bar."""
    return train(profile, files, trainer, on_step=lambda _done, _steps: None)
