"""`tandem keys`: API keys made, listed and revoked in the data directory. A running gateway sees each change within about a second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from config.schema import Limits
from gateway.admin_keys import KeyView
from gateway.api_key import ApiKey, NewKey, expiry
from gateway.columns import aligned
from gateway.key_file import KEYS_FILE, KeyFile, KeyFileError, UnknownKey
from gateway.startup import CannotStart, prepare_data_dir

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """What the command line says of a new key. models: patterns with commas between; expires: a span or a date."""

    name: str
    models: str | None
    expires: str | None
    admin: bool
    limits: Limits


def create(data_dir: Path, asked: Asked) -> int:
    """Print the new secret on stdout, alone, so that a script can take it; all else goes to stderr. Raises CannotStart."""
    now = time.time()
    wish = wish_of(asked, now)
    prepare_data_dir(data_dir)
    file = KeyFile(data_dir / KEYS_FILE)
    key, plain = _usable(lambda: file.create(wish, now))
    print(f"{key.id} ({key.name}): shown this once; {file.path} keeps its digest only", file=sys.stderr)
    print(plain)
    return 0


def show(data_dir: Path, as_json: bool) -> int:
    """Print every managed key. Raises CannotStart."""
    now = time.time()
    keys = _usable(KeyFile(data_dir / KEYS_FILE).read)
    if as_json:
        print(json.dumps([KeyView.of(key, now).model_dump() for key in keys], indent=1))
        return 0
    for line in table(keys, now):
        print(line)
    return 0


def revoke(data_dir: Path, key_id: str) -> int:
    """Raises CannotStart."""
    try:
        key = _usable(lambda: KeyFile(data_dir / KEYS_FILE).revoke(key_id, time.time()))
    except UnknownKey as error:
        raise CannotStart(f"no managed key in {data_dir} has the id '{key_id}'; `tandem keys list` shows them") from error
    print(f"{key.id} ({key.name}) is revoked")
    return 0


def wish_of(asked: Asked, now: float) -> NewKey:
    """Raises CannotStart, naming the option. now: Unix seconds."""
    try:
        models = None if asked.models is None else tuple(pattern.strip() for pattern in asked.models.split(","))
        expires_at = None if asked.expires is None else expiry(asked.expires, now)
        return NewKey(name=asked.name, models=models, expires_at=expires_at, limits=asked.limits, admin=asked.admin)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = str(problem["loc"][0])
        advice = (
            "use 1 to 64 printable characters" if option == "name" else "write names as `tandem models` lists them, * for any characters"
        )
        raise CannotStart(f"--{option} {problem['input']!r}: {advice}") from error
    except ValueError as error:
        raise CannotStart(f"--expires: {error}") from error


def table(keys: tuple[ApiKey, ...], now: float) -> Iterator[str]:
    """One line for each key, columns aligned; one line that says what to do where there is none."""
    if not keys:
        yield "no managed keys; make one with `tandem keys create --name NAME`"
        return
    rows = [("ID", "NAME", "STATE", "CREATED", "EXPIRES", "MODELS", "LIMITS"), *(_row(key, now) for key in keys)]
    yield from aligned(rows)


def _row(key: ApiKey, now: float) -> tuple[str, ...]:
    expires = "never" if key.expires_at is None else _moment(key.expires_at)
    models = "all" if key.models is None else ",".join(key.models)
    limits = ", ".join(f"{name}={value:g}" for name, value in key.limits if value is not None) or "none"
    state = f"{key.state(now)}, admin" if key.admin else key.state(now)
    return key.id, key.name, state, _moment(key.created_at), expires, models, limits


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(at))


def _usable(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except KeyFileError as error:
        raise CannotStart(str(error)) from error
