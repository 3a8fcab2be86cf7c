"""What an operator sets: no number may be infinite or none at all."""

import math

import pytest
from pydantic import SecretStr, ValidationError

from app.core.settings import Settings
from tests.database import TEST_MASTER_KEY

FLOATS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


def settings(**values: float) -> Settings:
    return Settings(
        database_url=SecretStr("postgresql://nowhere"),
        blob_url="file:///nowhere",
        master_key=SecretStr(TEST_MASTER_KEY),
        **values,  # type: ignore[arg-type]  # names are those of floats
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_no_number_of_the_settings_may_be_none(name: str, bad: float) -> None:
    """An infinite grant is no budget, and an infinite lease never ends."""
    assert {"grant_epsilon", "grant_delta", "lease_s"} <= set(FLOATS)
    assert getattr(settings(**{name: 0.5}), name) == 0.5
    with pytest.raises(ValidationError) as refused:
        settings(**{name: bad})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]
