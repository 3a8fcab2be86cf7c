"""The scan that `make check` runs over the whole tree finds what is planted; vouching is for one value."""

from pathlib import Path

import pytest

from tests.secret_scan import Finding, findings, known, stale, unknown

# In pieces, so that this file does not hold what is looked for.
PLANTED = {
    "key.pem": "-----BEGIN PRIVATE " + "KEY-----\nMC4CAQAwBQYDK2VwBCIE\n",
    "cloud.py": 'KEY = "AKIA' + 'QYLPMN5HHHFPZAM2"\n',
    "settings.py": 'URL = "postgresql://dpfl:' + 'h0rsefeathers@db.hospital.org/x"\n',
    "forge.txt": "token ghp" + "_wWPw5k4aXcaT4fNP0" + "UcnZwJUVFk6LO0pINUx\n",
    "session.md": "Bearer eyJhbGciOiJFZERTQSJ9" + ".eyJzdWIiOiJhZG1pbiJ9" + ".c2lnbmVkLWJ5LXVzLXdpdGg\n",
    "sealed.py": 'MASTER = "q7Jp2vXw8Lm' + "Z0aTn4RkYc1BsDf" + 'GhUe6iOo3PlKjMxW9="\n',
    "ours.json": '{"api_key": "dpfl_live_fCmWF'
    + "B80_95TrO93xUvhD6F7"
    + "3nt6iaXS16k2vUY"
    + 'ecJcBaV7JBX"}\n',
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_secret_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PLANTED[name])
    assert list(unknown(findings([tmp_path / name]), known()))


def test_vouching_for_a_value_vouches_for_no_other_file_and_no_other_value() -> None:
    found = [
        Finding(*one) for one in (("a.py", 1, "", "one"), ("a.py", 2, "", "two"), ("b.py", 1, "", "one"))
    ]
    assert list(unknown(found, {"a.py": frozenset({"one"})})) == found[1:]
    assert stale(found, {"a.py": frozenset({"one", "gone"}), "b.py": frozenset({"one"})}) == {"a.py"}
