"""Starts the test run's real services once. Fixtures live beside what they make (tests/database.py, ...)."""

import os

import pytest

from client.sealing import VARIABLE
from tests.services import DATABASE_VARIABLE, REDIS_VARIABLE, TestServices

pytest_plugins = ["tests.database"]

LOCAL_KEY = "a passphrase of these tests"
SERVICES = pytest.StashKey[TestServices]()


def pytest_configure(config: pytest.Config) -> None:
    """Start PostgreSQL and Valkey in the main process; workers of pytest-xdist inherit their addresses."""
    os.environ[VARIABLE] = LOCAL_KEY  # clients of tests make no key among this account's own configuration
    os.environ["LANGUAGE"] = "C"  # tests read our texts as they stand in the sources
    is_worker = hasattr(config, "workerinput")
    if is_worker or config.option.collectonly or DATABASE_VARIABLE in os.environ:
        return
    services = TestServices()
    services.start()
    config.stash[SERVICES] = services


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what may take longest, else shuffled as it is: at the end it would keep one core idle."""
    items.sort(key=lambda item: (item.get_closest_marker("system") is None, -_limit_s(item)))


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0.0


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what `pytest_configure` started."""
    services = config.stash.get(SERVICES, None)
    if services is not None:
        services.stop()
        for name in (DATABASE_VARIABLE, REDIS_VARIABLE):
            os.environ.pop(name, None)
