"""The form of API keys and enrolment tokens."""

import re

import pytest

from app.identity.credentials import is_enrolment_token, mint_api_key, mint_enrolment_token, read_key_id


def test_a_minted_key_names_its_id_and_carries_256_bits() -> None:
    minted = mint_api_key()
    assert re.fullmatch(r"dpfl_live_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", minted.text)
    assert read_key_id(minted.text) == minted.key_id


def test_no_two_keys_are_alike() -> None:
    assert len({mint_api_key().text for _index in range(100)}) == 100


@pytest.mark.parametrize("position", [10, 15, 25, 60, -1])
def test_one_wrong_character_is_seen_before_any_lookup(position: int) -> None:
    text = mint_api_key().text
    other = "A" if text[position] != "A" else "B"
    changed = list(text)
    changed[position] = other
    assert read_key_id("".join(changed)) is None


@pytest.mark.parametrize("text", ["", "dpfl_live_", "x" * 5000, "dpfl_live_abcdefgh_\u0661" * 3, "\x00"])
def test_other_texts_are_no_keys(text: str) -> None:
    assert read_key_id(text) is None
    assert not is_enrolment_token(text)


def test_an_enrolment_token_is_no_api_key() -> None:
    token = mint_enrolment_token()
    assert is_enrolment_token(token)
    assert read_key_id(token) is None
    assert not is_enrolment_token(token[:-1] + ("A" if token[-1] != "A" else "B"))
