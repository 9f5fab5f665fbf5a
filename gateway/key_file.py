"""The managed API keys: DATA_DIR/keys.json, readable by its owner only, digests instead of secrets.

A change reads, changes and replaces the whole file under a lock that the command line and a running gateway share, so neither undoes
what the other has done. A file that does not fit is never replaced: whoever broke it may mend it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.api_key import ApiKey, NewKey, digest, make_id, make_plain

KEYS_FILE = "keys.json"

Signature: TypeAlias = tuple[int, int, int]


class KeyFileError(Exception):
    """The file cannot be used; the message names it and the next step."""


class UnknownKey(Exception):
    """No managed key has this id."""


class _StoredKey(NewKey):
    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: float = Field(ge=0, lt=10**11)
    revoked_at: float | None = Field(default=None, ge=0, lt=10**11)


class _StoredKeys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1]
    keys: list[_StoredKey]


class KeyFile:
    """See the module. Its methods block for as long as the disk takes, and raise KeyFileError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def signature(self) -> Signature | None:
        """What changes whenever the file does; None where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error.strerror or "cannot be read") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def read(self) -> tuple[ApiKey, ...]:
        """Every key, oldest first, revoked ones too; none where there is no file."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unusable(error.strerror or "cannot be read") from error
        try:
            stored = _StoredKeys.model_validate_json(text, strict=True).keys
        except ValidationError as error:
            raise self._unusable(_first_problem(error)) from None
        for what in ("id", "digest"):
            if len({getattr(key, what) for key in stored}) < len(stored):
                raise self._unusable(f"two keys have the same {what}")
        return tuple(map(_loaded, stored))

    def create(self, wish: NewKey, now: float) -> tuple[ApiKey, str]:
        """The new key and its secret, which is nowhere else. now: Unix seconds."""
        plain = make_plain()
        with self._locked():
            keys = self.read()
            key = ApiKey(make_id(), wish.name, digest(plain.encode()), now, wish.expires_at, wish.models, wish.limits, wish.admin)
            self._write([*keys, key])
        return key, plain

    def revoke(self, key_id: str, now: float) -> ApiKey:
        """The key, revoked; one that was revoked before stays as it is. Raises UnknownKey."""
        if not self.path.exists():
            raise UnknownKey(key_id)
        with self._locked():
            keys = {key.id: key for key in self.read()}
            if key_id not in keys:
                raise UnknownKey(key_id)
            if keys[key_id].revoked_at is None:
                keys[key_id] = replace(keys[key_id], revoked_at=now)
                self._write(list(keys.values()))
        return keys[key_id]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile, in this process or in another. The lock is a file of its own: this one is replaced."""
        try:
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        with os.fdopen(descriptor, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, keys: list[ApiKey]) -> None:
        """Replace the file, whole or not at all, and on the disk before anybody is told of it."""
        document = _StoredKeys(version=1, keys=[_stored(key) for key in keys])
        draft = self.path.with_suffix(".new")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(document.model_dump_json(indent=1, exclude_none=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unusable(self, reason: str) -> KeyFileError:
        return KeyFileError(f"cannot use the keys in {self.path} ({reason}); correct the file, or restore an older copy")

    def _unwritable(self, error: OSError) -> KeyFileError:
        return KeyFileError(
            f"cannot write {self.path} ({error.strerror}); nothing has changed: mend its folder, or use another data directory"
        )


def _first_problem(error: ValidationError) -> str:
    """Where and what, without the value."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _loaded(stored: _StoredKey) -> ApiKey:
    return ApiKey(
        id=stored.id,
        name=stored.name,
        digest=bytes.fromhex(stored.digest),
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        models=stored.models,
        limits=stored.limits,
        admin=stored.admin,
        revoked_at=stored.revoked_at,
    )


def _stored(key: ApiKey) -> _StoredKey:
    return _StoredKey(
        id=key.id,
        name=key.name,
        digest=key.digest.hex(),
        created_at=key.created_at,
        expires_at=key.expires_at,
        models=key.models,
        limits=key.limits,
        admin=key.admin,
        revoked_at=key.revoked_at,
    )
