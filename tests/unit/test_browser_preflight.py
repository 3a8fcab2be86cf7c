"""Where there is no browser, `make test-browser` says so and fails."""

from pathlib import Path

import pytest

from tests.browser import preflight


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ((), ("chromium", "chromium-driver")),
        (("chromium",), ("chromium-driver",)),
        (("chromedriver",), ("apt-get install chromium)",)),
        (("google-chrome", "chromedriver"), ()),
    ],
)
def test_what_is_missing_is_named_with_its_package_and_the_status_tells(
    there: tuple[str, ...],
    named: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in there:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.main() == (1 if named else 0)
    said = capsys.readouterr().err
    assert bool(said) == bool(named)
    assert all(name in said for name in named)
