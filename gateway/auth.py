"""API keys: who may ask. Keys are compared by their SHA-256 digests, in constant time, and are never logged or echoed.

The decision needs the request's headers only. A key comes as `Authorization: Bearer KEY` or as `x-api-key: KEY`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import unauthorized

KEY_FILE = "api_key"
ENVIRONMENT = "TANDEM_API_KEY"
PREFIX = "sk-tandem-"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The digests of the keys that are accepted. hint: where the user finds a key, for the message of a 401."""

    digests: tuple[bytes, ...]
    hint: str

    @classmethod
    def of(cls, keys: Iterable[str], hint: str) -> KeyRing:
        return cls(tuple(_digest(key.encode()) for key in keys), hint)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Return if the headers hold an accepted key. Raises GatewayError (401)."""
        given = _key_in(headers)
        if not given:
            raise unauthorized(f"no API key: send it as 'Authorization: Bearer KEY'; {self.hint}")
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them: time must not tell which
        if not any(matches):
            raise unauthorized(f"this API key is not accepted; {self.hint}")


def load_or_create_keys(data_dir: Path, environ: Mapping[str, str]) -> tuple[KeyRing, str | None]:
    """The keys of this installation, and the plain key if one was made just now.

    TANDEM_API_KEY is accepted where it is set, and the key in the data directory is as well where there is one. One is made only
    where there is neither. Raises OSError where the data directory cannot be written or the key file cannot be read.
    """
    path = data_dir / KEY_FILE
    keys = [environ[ENVIRONMENT].strip()] if environ.get(ENVIRONMENT, "").strip() else []
    stored = path.read_text().strip() if path.exists() else ""
    created = None
    if stored:
        keys.append(stored)
    elif not keys:
        created = PREFIX + secrets.token_urlsafe(32)
        _write_private(path, created + "\n")
        keys.append(created)
    hint = f"the key is in {path}" if stored or created else f"the key is the value of {ENVIRONMENT} that the gateway was started with"
    return KeyRing.of(keys, hint), created


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    api_key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            api_key = value.strip()
    return api_key


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
