"""What strangers write can neither forge a line of the log nor hide in one."""

import json

import pytest
import structlog

from app.core.logs import configure_logs
from app.core.settings import Environment

HOSTILE = "x\r\n2026-12-01T12:00:00Z [info] signed_in\x1b[2K\x1b[1A\u202ekcatta\u2028y\x85z"
"""A forged line, what wipes the real one from a terminal, a turn of direction, two odd line ends."""


@pytest.fixture
def hostile_lines(environment: Environment, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configured = structlog.get_config()
    configure_logs(environment)
    log = structlog.get_logger().bind()
    log.warning("refused", name=HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        log.error("unhandled_error", exc_info=error)
    structlog.configure(**configured)
    return capsys.readouterr().err.split("\n")[:-1]


@pytest.mark.parametrize("environment", [Environment.DEVELOPMENT, Environment.PRODUCTION])
def test_what_a_stranger_wrote_neither_forges_a_line_of_the_log_nor_hides_in_one(
    environment: Environment, hostile_lines: list[str]
) -> None:
    text = "\n".join(hostile_lines)
    assert text.isascii()
    assert not set(text) & set(map(chr, range(32))) - {"\n"}
    begun = [line for line in hostile_lines if not line.startswith(("  ", "Traceback"))]
    assert len(begun) == 2
    if environment is Environment.PRODUCTION:
        assert [json.loads(line)["event"] for line in begun] == ["refused", "unhandled_error"]
