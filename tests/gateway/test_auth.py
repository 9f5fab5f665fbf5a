"""Keys: where they come from, and that only they open the door."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.api_key import ApiKey, NewKey
from gateway.auth import KeyRing, load_or_create_keys
from gateway.errors import GatewayError
from gateway.key_file import KeyFile, KeyFileError
from tests.gateway.clock import Clock

RING = KeyRing.of(["one", "two"], "the key is in the drawer")


@pytest.mark.parametrize(
    "headers",
    [[(b"authorization", b"Bearer one")], [(b"authorization", b"bearer  two ")], [(b"x-api-key", b"two")]],
)
def test_a_known_key_is_accepted(headers: list[tuple[bytes, bytes]]) -> None:
    key = RING.check(headers)
    assert (key.id, key.admin, key.models) == ("installation", True, None)


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
    again.check([(b"x-api-key", created.encode())])
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


NOW = 1_795_000_000.0


def code(ring: KeyRing, plain: str) -> str | None:
    """The error's code for this key, or None where it is accepted."""
    try:
        ring.check([(b"authorization", f"Bearer {plain}".encode())])
    except GatewayError as error:
        return error.code if error.status == 401 and plain not in error.message else "wrong"
    return None


def test_a_managed_key_is_accepted_as_what_it_is(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, plain = file.create(NewKey(name="a", models=("demo",)), NOW)
    ring = KeyRing((), "ask", file, Clock(NOW))
    assert ring.check([(b"x-api-key", plain.encode())]) == key


def test_keys_that_are_made_or_revoked_are_seen_within_a_second(tmp_path: Path) -> None:
    clock, file = Clock(NOW), KeyFile(tmp_path / "keys.json")
    ring = KeyRing((), "ask", file, clock)
    key, plain = file.create(NewKey(name="a"), NOW)
    clock.now += 0.99
    assert code(ring, plain) == "invalid_api_key"
    clock.now += 0.01
    assert code(ring, plain) is None
    file.revoke(key.id, NOW)
    clock.now += 0.99
    assert code(ring, plain) is None
    clock.now += 0.01
    assert code(ring, plain) == "invalid_api_key"


def test_a_clock_that_is_set_back_does_not_keep_a_revoked_key_alive(tmp_path: Path) -> None:
    clock, file = Clock(NOW), KeyFile(tmp_path / "keys.json")
    key, plain = file.create(NewKey(name="a"), NOW)
    ring = KeyRing((), "ask", file, clock)
    file.revoke(key.id, NOW)
    clock.now -= 3600
    assert code(ring, plain) == "invalid_api_key"


def test_the_disk_is_asked_once_in_a_second_at_most(tmp_path: Path) -> None:
    class Counting(KeyFile):
        looks = reads = 0

        def signature(self) -> tuple[int, int, int] | None:
            self.looks += 1
            return super().signature()

        def read(self) -> tuple[ApiKey, ...]:
            self.reads += 1
            return super().read()

    clock, file = Clock(NOW), Counting(tmp_path / "keys.json")
    _, plain = file.create(NewKey(name="a"), NOW)
    file.reads = 0
    ring = KeyRing((), "ask", file, clock)
    for _ in range(100):
        clock.now += 0.05
        assert code(ring, plain) is None
    assert file.looks in (5, 6)
    assert file.reads == 1


def test_an_expired_key_is_told_so(tmp_path: Path) -> None:
    clock, file = Clock(NOW), KeyFile(tmp_path / "keys.json")
    _, plain = file.create(NewKey(name="a", expires_at=int(NOW) + 60), NOW)
    ring = KeyRing((), "ask", file, clock)
    clock.now += 59.9
    assert code(ring, plain) is None
    clock.now += 0.1
    assert code(ring, plain) == "api_key_expired"


def test_a_file_that_breaks_keeps_the_keys_known_before_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, file = Clock(NOW), KeyFile(tmp_path / "keys.json")
    _, plain = file.create(NewKey(name="a"), NOW)
    whole = file.path.read_bytes()
    ring = KeyRing((), "ask", file, clock)
    file.path.write_text("{")
    for _ in range(3):
        clock.now += 1
        assert code(ring, plain) is None
    assert len(caplog.messages) == 1
    assert "Invalid JSON" in caplog.messages[0]
    assert "the keys known before stay in force" in caplog.messages[0]
    file.path.write_bytes(whole.replace(b'"a"', b'"b"'))
    clock.now += 1
    assert ring.check([(b"x-api-key", plain.encode())]).name == "b"


def test_a_file_that_is_taken_away_takes_its_keys_along(tmp_path: Path) -> None:
    clock, file = Clock(NOW), KeyFile(tmp_path / "keys.json")
    _, plain = file.create(NewKey(name="a"), NOW)
    ring = KeyRing((), "ask", file, clock)
    file.path.unlink()
    clock.now += 1
    assert code(ring, plain) == "invalid_api_key"


def test_a_broken_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(KeyFileError, match="version: Field required"):
        load_or_create_keys(tmp_path, {})


def test_the_keys_of_the_installation_and_the_managed_ones_are_accepted_together(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, plain = file.create(NewKey(name="a"), NOW)
    ring, created = load_or_create_keys(tmp_path, {"TANDEM_API_KEY": "mine"})
    assert created is None
    assert [code(ring, one) for one in (plain, "mine", "other")] == [None, None, "invalid_api_key"]
