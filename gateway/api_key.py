"""What an API key is: a secret that only its holder has, and here its SHA-256 digest with what may be done with it.

The secret itself exists once, when the key is made: nothing keeps it, logs it or echoes it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from config.schema import Limits

PREFIX = "sk-tandem-"
INSTALLATION = "installation"  # id of the key that came with the installation: it may do everything

State: TypeAlias = Literal["active", "expired", "revoked"]
# Letters of a model's name, and `*` for any of them: fnmatch's other signs cannot stand here.
ModelPattern: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._:/@+*-]*$", max_length=128)]

_SPAN = re.compile(r"([1-9]\d{0,4})([dh])")
_SPAN_S = {"d": 86_400, "h": 3_600}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. id: public, what records and metrics name it by. models: patterns of public model names, None for all of them.

    Times are Unix seconds; expires_at None: never, revoked_at None: not revoked.
    """

    id: str
    name: str
    digest: bytes = field(repr=False)
    created_at: float
    expires_at: int | None = None
    models: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    admin: bool = False
    revoked_at: float | None = None

    def allows(self, model: str) -> bool:
        """Whether this public model name may be used with it."""
        return self.models is None or any(pattern == model or fnmatchcase(model, pattern) for pattern in self.models)

    def state(self, now: float) -> State:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"


class NewKey(BaseModel):
    """A key that somebody wishes to have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")
    """For people: who or what uses it. Required."""
    models: tuple[ModelPattern, ...] | None = Field(default=None, min_length=1)
    """Public model names that it may use; `*` stands for any characters. Default null: all."""
    expires_at: int | None = Field(default=None, gt=0, lt=10**11)
    """Unix time in seconds from which it is not accepted any more. Default null: never."""
    limits: Limits = Field(default_factory=Limits)
    """How much may be asked with it, of all models together. Default: no limit."""
    admin: bool = False
    """Whether it may create, list and revoke keys. Default false."""


def installation_key(plain: str) -> ApiKey:
    """The key that an operator or the first start has put there."""
    return ApiKey(INSTALLATION, "the installation's own key", digest(plain.encode()), created_at=0, admin=True)


def make_plain() -> str:
    """A new secret of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def make_id() -> str:
    """A new public id."""
    return f"key_{secrets.token_hex(8)}"


def digest(plain: bytes) -> bytes:
    """What is kept of a key. No salt and no stretching: there is nothing to guess in 256 random bits."""
    return hashlib.sha256(plain).digest()


def expiry(text: str, now: float) -> int:
    """Unix seconds at which "30d", "12h", "2027-01-31" or "2027-01-31T18:00+02:00" ends: UTC where no zone is named, a day at its
    beginning. Raises ValueError."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return int(now) + int(span[1]) * _SPAN_S[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text}' is no time; write days or hours like 30d or 12h, or a date like 2027-01-31 (UTC)") from None
    at = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if at <= now:
        raise ValueError(f"'{text}' is past; name a later time")
    return at
