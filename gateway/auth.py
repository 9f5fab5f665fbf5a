"""API keys: who may ask. Keys are known by their SHA-256 digests only, and are never logged or echoed.

The decision needs the request's headers and the time. A key comes as `Authorization: Bearer KEY` or as `x-api-key: KEY`. Managed keys
(`gateway/key_file.py`) are looked at again once in a second, so that a key is made or revoked without a restart.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gateway.api_key import ApiKey, digest, installation_key, make_plain
from gateway.errors import unauthorized
from gateway.key_file import KEYS_FILE, KeyFile, KeyFileError, Signature

KEY_FILE = "api_key"
ENVIRONMENT = "TANDEM_API_KEY"
LOOK_AGAIN_S = 1.0
log = logging.getLogger("tandem.auth")


class KeyRing:
    """The keys that are accepted. hint: where the user finds one, for the message of a 401. file: the managed ones, where there are any.

    Lives on one event loop. clock: Unix time in seconds. Making it raises KeyFileError; later a file that cannot be used is logged, and
    the keys known before stay in force.
    """

    def __init__(self, keys: Iterable[ApiKey], hint: str, file: KeyFile | None = None, clock: Callable[[], float] = time.time) -> None:
        self.hint, self.file, self.clock = hint, file, clock
        self._own = {key.digest: key for key in keys}
        self._keys: Mapping[bytes, ApiKey] = self._own
        self._signature: Signature | None = None
        self._problem = ""
        self._looked_at = clock()
        if file is not None:
            self._load(file)

    @classmethod
    def of(cls, keys: Iterable[str], hint: str) -> KeyRing:
        """A ring of keys of the installation: each of them may do everything."""
        return cls(map(installation_key, keys), hint)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """The key in the headers. Raises GatewayError (401)."""
        now = self.clock()
        if not 0 <= now - self._looked_at < LOOK_AGAIN_S:  # a clock that was set back must not blind us until it has caught up
            self.refresh()
        given = _key_in(dict(headers))
        if not given:
            raise unauthorized(f"no API key: send it as 'Authorization: Bearer KEY'; {self.hint}")
        # How long the look-up takes may tell something of a digest: nothing that helps to find a key, least of all one of 256 random bits.
        asked = digest(given)
        key = self._keys.get(asked)
        if key is None or not hmac.compare_digest(key.digest, asked):
            raise unauthorized(f"this API key is not accepted; {self.hint}")
        if key.expires_at is not None and now >= key.expires_at:
            at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(key.expires_at))
            raise unauthorized(
                f"the API key '{key.name}' ({key.id}) has expired at {at}; ask the operator for a new one", "api_key_expired"
            )
        return key

    def refresh(self) -> None:
        """Look at the managed keys now, and load them if their file has changed."""
        self._looked_at = self.clock()
        if self.file is None:
            return
        try:
            self._load(self.file)
        except KeyFileError as error:
            if str(error) != self._problem:  # once, not each second
                self._problem = str(error)
                log.error("%s; the keys known before stay in force", error)

    def _load(self, file: KeyFile) -> None:
        signature = file.signature()  # before reading: what is written in between is seen the next time
        if signature != self._signature or self._problem:
            managed = {key.digest: key for key in file.read() if key.revoked_at is None}
            self._keys = {**managed, **self._own}
            self._signature, self._problem = signature, ""


def load_or_create_keys(data_dir: Path, environ: Mapping[str, str]) -> tuple[KeyRing, str | None]:
    """The keys of this installation, and the plain key if one was made just now.

    TANDEM_API_KEY is accepted where it is set, and the key in the data directory is as well where there is one. One is made only
    where there is neither. The managed keys come on top. Raises OSError where the data directory cannot be written or the key file
    cannot be read, KeyFileError where the managed keys cannot be used.
    """
    path = data_dir / KEY_FILE
    keys = [environ[ENVIRONMENT].strip()] if environ.get(ENVIRONMENT, "").strip() else []
    stored = path.read_text().strip() if path.exists() else ""
    created = None
    if stored:
        keys.append(stored)
    elif not keys:
        created = make_plain()
        _write_private(path, created + "\n")
        keys.append(created)
    hint = f"the key is in {path}" if stored or created else f"the key is the value of {ENVIRONMENT} that the gateway was started with"
    return KeyRing(map(installation_key, keys), hint, KeyFile(data_dir / KEYS_FILE)), created


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _key_in(headers: Mapping[bytes, bytes]) -> bytes:
    bearer = headers.get(b"authorization")
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip()
    return headers.get(b"x-api-key", b"").strip()
