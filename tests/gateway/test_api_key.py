"""What a key may be used for and until when."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.api_key import ApiKey, NewKey, expiry

NOW = 1_795_521_600.0  # 2026-11-24 12:00 UTC


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        (None, "anything", True),
        (("demo",), "demo", True),
        (("demo",), "demo-image", False),
        (("demo",), "Demo", False),
        (("demo*",), "demo-image", True),
        (("a", "openrouter/*"), "openrouter/vendor/model", True),
        (("openrouter/*",), "openrouter", False),
        (("*",), "x/y:z", True),
        (("a*c",), "abcb", False),
        (("a.c",), "abc", False),
    ],
)
def test_a_pattern_names_models(models: tuple[str, ...] | None, model: str, allowed: bool) -> None:
    assert ApiKey("k", "k", b"", 0, models=models).allows(model) is allowed


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("30d", NOW + 30 * 86_400),
        ("12h", NOW + 12 * 3600),
        ("2026-11-25", NOW + 12 * 3600),
        ("2026-11-24T13:00", NOW + 3600),
        ("2026-11-24T13:00+02:00", NOW - 3600),
        ("2027-01-31T00:00:00Z", NOW + 67.5 * 86_400),
    ],
)
def test_an_expiry_is_a_span_or_a_utc_date(text: str, at: float) -> None:
    if at < NOW:
        with pytest.raises(ValueError, match="is past; name a later time"):
            expiry(text, NOW)
    else:
        assert expiry(text, NOW) == at


@pytest.mark.parametrize("text", ["", "d", "0d", "-3d", "3", "3m", "30 d", "tomorrow", "2026-13-01", "1" * 30 + "d"])
def test_anything_else_is_no_expiry(text: str) -> None:
    with pytest.raises(ValueError, match="write days or hours like 30d or 12h"):
        expiry(text, NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 65},
        {"models": ()},
        {"models": ("",)},
        {"models": ("[a]",)},
        {"models": ("a?",)},
        {"no": 1},
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NewKey.model_validate({"name": "a"} | fields)


def test_the_state_of_a_key() -> None:
    assert ApiKey("k", "k", b"", 0).state(NOW) == "active"
    assert ApiKey("k", "k", b"", 0, expires_at=5).state(4.9) == "active"
    assert ApiKey("k", "k", b"", 0, expires_at=5).state(5) == "expired"
    assert ApiKey("k", "k", b"", 0, expires_at=5, revoked_at=3).state(9) == "revoked"
