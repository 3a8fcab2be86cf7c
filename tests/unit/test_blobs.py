"""Removing blobs: what came again a moment ago stays, although its name is that of an old one."""

import os
from pathlib import Path

import pytest

from app.core.blobs import LocalBlobs

CONTENT = b"the zero update, which many send"


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def put_long_ago(blobs: LocalBlobs) -> str:
    digest = blobs.put(CONTENT)
    os.utime(blobs.path(digest), (1.0, 1.0))
    return digest


def files(blobs: LocalBlobs) -> list[Path]:
    return [path for path in blobs.folder.rglob("*") if path.is_file()]


def test_an_old_blob_is_removed_once_and_leaves_nothing(blobs: LocalBlobs) -> None:
    digest = put_long_ago(blobs)
    blobs.delete_old(digest, min_age_s=60.0)
    blobs.delete_old(digest, min_age_s=60.0)
    assert files(blobs) == []


def test_a_blob_that_was_put_again_a_moment_ago_stays(blobs: LocalBlobs) -> None:
    digest = put_long_ago(blobs)
    assert blobs.put(CONTENT) == digest
    blobs.delete_old(digest, min_age_s=60.0)
    assert files(blobs) == [blobs.path(digest)]
    assert blobs.read(digest) == CONTENT


def test_a_blob_that_comes_again_while_it_is_removed_stays(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between looking at a file and removing it: other bytes of the same name arrive there."""
    digest, replace = put_long_ago(blobs), os.replace

    def replace_and_put_again(source: Path, target: Path) -> None:
        replace(source, target)
        if source == blobs.path(digest):
            monkeypatch.setattr(os, "replace", replace)
            blobs.put(CONTENT)

    monkeypatch.setattr(os, "replace", replace_and_put_again)
    blobs.delete_old(digest, min_age_s=60.0)
    assert files(blobs) == [blobs.path(digest)]
    assert blobs.read(digest) == CONTENT
