"""Managed keys on the disk: what is kept, who may read it, and that nobody's change is lost."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.schema import Limits
from gateway.api_key import NewKey, digest
from gateway.cli import PROJECT
from gateway.key_file import KeyFile, KeyFileError, UnknownKey

NOW = 1_795_000_000.5
STORED: dict[str, Any] = {"name": "a", "id": "key_1", "digest": "ab" * 32, "created_at": 5}
MAKE_KEYS = """
import sys
from pathlib import Path
from gateway.api_key import NewKey
from gateway.key_file import KeyFile

file = KeyFile(Path(sys.argv[1]))
sys.stdin.read(1)
for number in range(40):
    key, _ = file.create(NewKey(name=f"{sys.argv[2]}-{number}"), 1)
    if number % 4 == 0:
        file.revoke(key.id, 2)
"""


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_no_file_is_no_keys(file: KeyFile, tmp_path: Path) -> None:
    assert (file.read(), file.signature()) == ((), None)
    with pytest.raises(UnknownKey):
        file.revoke("key_1", NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_key_comes_back_as_it_was_made(file: KeyFile) -> None:
    limits = Limits(requests_per_minute=5, budget_usd_per_month=2.5)
    wish = NewKey(name="Zoë's laptop", models=("demo", "openrouter/*"), expires_at=int(NOW) + 9, limits=limits, admin=True)
    key, plain = file.create(wish, NOW)
    assert key.digest == digest(plain.encode())
    assert (key.name, key.models, key.expires_at, key.limits, key.admin) == (wish.name, wish.models, wish.expires_at, limits, True)
    plainest, _ = file.create(NewKey(name="b"), NOW + 1)
    assert file.read() == (key, plainest)


def test_the_secret_is_not_in_the_file_and_the_file_is_for_its_owner_only(file: KeyFile, tmp_path: Path) -> None:
    key, plain = file.create(NewKey(name="a"), NOW)
    assert plain.startswith("sk-tandem-")
    assert len(plain) >= 50
    for entry in tmp_path.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
        assert plain.removeprefix("sk-tandem-")[:12] not in entry.read_text()
    assert plain not in repr(key)
    assert {entry.name for entry in tmp_path.iterdir()} == {"keys.json", "keys.lock"}


def test_a_revoked_key_stays_listed_with_its_first_time(file: KeyFile) -> None:
    key, _ = file.create(NewKey(name="a"), NOW)
    assert file.revoke(key.id, NOW + 5).revoked_at == NOW + 5
    assert file.revoke(key.id, NOW + 9).revoked_at == NOW + 5
    assert [stored.revoked_at for stored in file.read()] == [NOW + 5]
    with pytest.raises(UnknownKey):
        file.revoke("key_other", NOW)


def test_each_change_changes_the_signature(file: KeyFile) -> None:
    seen = [file.signature()]
    for _ in range(3):
        key, _ = file.create(NewKey(name="a"), NOW)
        seen.append(file.signature())
    file.revoke(key.id, NOW)
    seen.append(file.signature())
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "version: Field required"),
        ('{"version": 2, "keys": []}', "version: Input should be 1"),
        ('{"version": 1, "keys": [], "more": 1}', "more: Extra inputs"),
        (STORED | {"digest": "abc"}, "keys[0].digest: String should match"),
        (STORED | {"digest": "AB" * 32}, "keys[0].digest"),
        (STORED | {"name": ""}, "keys[0].name"),
        (STORED | {"models": []}, "keys[0].models"),
        (STORED | {"models": ["a b"]}, "keys[0].models[0]"),
        (STORED | {"limits": {"requests_per_minute": "5"}}, "keys[0].limits.requests_per_minute: Input should be a valid integer"),
        (STORED | {"limits": {"requests": 5}}, "keys[0].limits.requests: Extra inputs"),
        (STORED | {"created_at": 1e300}, "keys[0].created_at"),
        (STORED | {"admin": 1}, "keys[0].admin"),
        (STORED | {"amdin": True}, "keys[0].amdin: Extra inputs"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_the_place_and_is_never_replaced(file: KeyFile, text: Any, reason: str) -> None:
    file.path.write_text(text if isinstance(text, str) else json.dumps({"version": 1, "keys": [text]}))
    before = file.path.read_bytes()
    for use in (file.read, lambda: file.create(NewKey(name="b"), NOW), lambda: file.revoke("key_1", NOW)):
        with pytest.raises(KeyFileError) as caught:
            use()
        assert reason in str(caught.value)
        assert str(file.path) in str(caught.value)
        assert "abab" not in str(caught.value)
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("same", ["id", "digest"])
def test_two_keys_of_one_id_or_digest_are_refused(file: KeyFile, same: str) -> None:
    other = STORED | {"id": "key_2", "digest": "cd" * 32} | {same: STORED[same]}
    file.path.write_text(json.dumps({"version": 1, "keys": [STORED, other]}))
    with pytest.raises(KeyFileError, match=f"two keys have the same {same}"):
        file.read()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot write .*No such file or directory"):
        KeyFile(tmp_path / "none" / "keys.json").create(NewKey(name="a"), NOW)


def test_processes_that_change_the_keys_at_the_same_time_lose_none(file: KeyFile) -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKE_KEYS, str(file.path), name], cwd=PROJECT, stdin=subprocess.PIPE) for name in "abc"
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write(b"x")
        maker.stdin.close()
    assert [maker.wait(timeout=60) for maker in makers] == [0, 0, 0]
    keys = file.read()
    assert sorted(key.name for key in keys) == sorted(f"{name}-{number}" for name in "abc" for number in range(40))
    assert sum(key.revoked_at is not None for key in keys) == 30
