"""The round's stream: the same for the same round, unrelated for anything else."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.privacy.round_stream import (
    REQUIRED_PARAMETERS,
    Parameter,
    SealedInput,
    commit_to,
    fresh_secret,
    opens,
    round_stream,
)

SECRET = bytes(range(32))
PARAMETERS: dict[str, Parameter] = {
    "mechanism": "central-gaussian/1",
    "sampler": "box-muller-256/1",
    "noise_multiplier": 1.1292,
    "clip_norm": 0.5,
    "grid": 2.0**-25,
    "dimension": 6,
    "tensors": [["a", [2, 2]], ["b", [2]]],
}
CHANGES: list[tuple[str, Parameter]] = [
    ("mechanism", "central-gaussian/2"),
    ("sampler", "box-muller-256/2"),
    ("noise_multiplier", 1.1293),
    ("clip_norm", 0.5000000000000001),
    ("clip_norm", "0.5"),
    ("grid", 2.0**-26),
    ("dimension", 7),
    ("dimension", 6.0),
    ("tensors", [["b", [2]], ["a", [2, 2]]]),
    ("tensors", [["a", [2, 2]], ["b", [2, 1]]]),
    ("tensors", [["a", [2, 2], "b", [2]]]),
    ("divisor", 50.5),
]


def digest_of(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


SEALED = [SealedInput(contribution=name, digest=digest_of(name)) for name in ("u1", "u2", "u3")]


def first_bytes(
    *,
    secret: bytes = SECRET,
    parameters: dict[str, Parameter] | None = None,
    sealed: list[SealedInput] | None = None,
) -> bytes:
    stream = round_stream(
        secret, parameters=parameters or PARAMETERS, sealed=SEALED if sealed is None else sealed
    )
    return stream.take(48)


def test_the_same_sealed_set_and_parameters_give_the_same_bytes_in_whatever_order_they_come() -> None:
    turned = dict(reversed(list(PARAMETERS.items())))
    assert first_bytes() == first_bytes(parameters=turned, sealed=SEALED[::-1])


def test_the_stream_is_the_same_on_every_machine_and_in_every_version() -> None:
    # Computed by this construction when it was written; a change needs a new mechanism or label.
    assert first_bytes().hex()[:32] == "8d4342ce7cda9dc44a479c111b53f802"


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_another_parameter_never_gives_the_same_stream(name: str, value: Parameter) -> None:
    assert first_bytes(parameters={**PARAMETERS, name: value}) != first_bytes()


@pytest.mark.parametrize(
    "sealed",
    [
        [],
        SEALED[:2],
        [*SEALED, SealedInput(contribution="u4", digest=digest_of("u4"))],
        [*SEALED[:2], SealedInput(contribution="u3", digest=digest_of("other"))],
        [*SEALED[:2], SealedInput(contribution="u3", digest=digest_of("u3"), weight=0.5)],
        [*SEALED[:2], SealedInput(contribution="u9", digest=digest_of("u3"))],
    ],
)
def test_another_sealed_set_never_gives_the_same_stream(sealed: list[SealedInput]) -> None:
    assert first_bytes(sealed=sealed) != first_bytes()


def test_another_secret_gives_another_stream() -> None:
    assert first_bytes(secret=bytes(32)) != first_bytes()
    assert fresh_secret() != fresh_secret()


values = st.recursive(
    st.text(max_size=4) | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(values, values)
def test_two_values_share_a_stream_only_when_they_are_the_same_value(
    one: Parameter, other: Parameter
) -> None:
    same = first_bytes(parameters={**PARAMETERS, "extra": one}) == first_bytes(
        parameters={**PARAMETERS, "extra": other}
    )
    assert same == (repr(one) == repr(other))  # repr tells 1 from 1.0 and 0.0 from -0.0


def test_a_value_cannot_be_moved_from_a_name_into_its_value() -> None:
    split = first_bytes(parameters={**PARAMETERS, "x": "ab", "y": "c"})
    assert split != first_bytes(parameters={**PARAMETERS, "x": "a", "y": "bc"})
    assert split != first_bytes(parameters={**PARAMETERS, "xa": "b", "y": "c"})


@pytest.mark.parametrize("name", sorted(REQUIRED_PARAMETERS))
def test_a_stream_that_is_not_bound_to_a_required_parameter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        first_bytes(parameters={key: value for key, value in PARAMETERS.items() if key != name})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, {"a": 1}, b"ab"])
def test_a_value_without_a_canonical_form_is_refused(value: Parameter) -> None:
    with pytest.raises(ValueError, match=r"canonical|finite"):
        first_bytes(parameters={**PARAMETERS, "extra": value})


def test_a_contribution_that_is_sealed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        first_bytes(sealed=[*SEALED, SEALED[0]])


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        first_bytes(secret=bytes(length))


@pytest.mark.parametrize(
    ("name", "digest", "weight"),
    [("", bytes(32), 1.0), ("u", bytes(31), 1.0), ("u", bytes(32), -1.0), ("u", bytes(32), float("nan"))],
)
def test_a_sealed_input_without_name_digest_or_weight_is_refused(
    name: str, digest: bytes, weight: float
) -> None:
    with pytest.raises(ValueError, match="sealed input"):
        SealedInput(contribution=name, digest=digest, weight=weight)


def test_a_commitment_opens_for_its_own_digest_and_salt_alone() -> None:
    salt, digest = fresh_secret(), digest_of("update")
    commitment = commit_to(digest, salt=salt)
    assert opens(commitment, digest=digest, salt=salt)
    assert not opens(commitment, digest=digest_of("guess"), salt=salt)
    assert not opens(commitment, digest=digest, salt=fresh_secret())


def test_a_commitment_does_not_show_that_two_digests_are_equal() -> None:
    digest = digest_of("update")
    assert commit_to(digest, salt=fresh_secret()) != commit_to(digest, salt=fresh_secret())


def test_a_short_salt_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes each"):
        commit_to(bytes(32), salt=b"")
