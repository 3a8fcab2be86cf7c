"""Serves one round for a profile as `dpfl client run --once` does, with a trainer that needs no model.

Each run trains different bytes, so that a second training that got out would show. Usage:
`python -m tests.client_driver PROFILE RUN_ID`.
"""

import sys
from pathlib import Path

from client.profile import Profile
from client.serving import Seat, Service
from client.session import Identity, Session
from client.watching import LineWatcher
from tests.client_folders import RandomTrainer


def main() -> None:
    profile = Profile.open(Path(sys.argv[1]))
    with profile.locked():
        session = Session(profile.config.server, identity=Identity(profile.config.client_id, profile.key()))
        seat = Seat(profile, session, run_id=sys.argv[2])
        Service([seat], trainer=RandomTrainer(), watcher=LineWatcher(sys.stdout), once=True).run()
        session.close()


if __name__ == "__main__":
    main()
