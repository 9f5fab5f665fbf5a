"""Keys: where they come from, and that only they open the door."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.auth import KeyRing, load_or_create_keys
from gateway.errors import GatewayError

RING = KeyRing.of(["one", "two"], "the key is in the drawer")


@pytest.mark.parametrize(
    "headers",
    [[(b"authorization", b"Bearer one")], [(b"authorization", b"bearer  two ")], [(b"x-api-key", b"two")]],
)
def test_a_known_key_is_accepted(headers: list[tuple[bytes, bytes]]) -> None:
    RING.check(headers)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "no API key"),
        ([(b"authorization", b"Basic b25l")], "no API key"),
        ([(b"authorization", b"Bearer ")], "no API key"),
        ([(b"authorization", b"Bearer three")], "not accepted"),
        ([(b"authorization", b"Bearer \xff\x00")], "not accepted"),
        ([(b"authorization", b"Bearer wrong"), (b"x-api-key", b"one")], "not accepted"),
    ],
)
def test_anything_else_is_401_with_the_next_step_and_without_the_key(headers: list[tuple[bytes, bytes]], said: str) -> None:
    with pytest.raises(GatewayError, match=said) as caught:
        RING.check(headers)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert "in the drawer" in caught.value.message
    assert "three" not in caught.value.message


def test_the_first_start_makes_a_private_key_and_the_next_ones_keep_it(tmp_path: Path) -> None:
    ring, created = load_or_create_keys(tmp_path, {})
    path = tmp_path / "api_key"
    assert created is not None
    assert path.read_text().strip() == created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring.check([(b"x-api-key", created.encode())])
    assert created not in repr(ring)
    again, none = load_or_create_keys(tmp_path, {})
    assert none is None
    assert again.digests == ring.digests
    assert [entry.name for entry in tmp_path.iterdir()] == ["api_key"]


def test_a_key_in_the_environment_is_accepted_and_none_is_made(tmp_path: Path) -> None:
    ring, created = load_or_create_keys(tmp_path, {"TANDEM_API_KEY": " from-env "})
    assert created is None
    assert list(tmp_path.iterdir()) == []
    ring.check([(b"x-api-key", b"from-env")])


def test_both_are_accepted_where_both_are_there(tmp_path: Path) -> None:
    _, created = load_or_create_keys(tmp_path, {})
    assert created is not None
    ring, _ = load_or_create_keys(tmp_path, {"TANDEM_API_KEY": "from-env"})
    for key in (created, "from-env"):
        ring.check([(b"x-api-key", key.encode())])
