"""In which order the deployments of a model are asked. Pure: numbers in, positions out."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Strategy: TypeAlias = Literal["ordered", "weighted", "least_in_flight", "session", "prompt_prefix"]
SESSION_HEADER = b"x-session-id"
_PREFIX_CHARACTERS = 4096  # of a conversation's first messages
# An affine deployment with more than this much above its fair share is passed over: one hot key must not drown it.
_OVERLOAD = 1.25
_SLACK = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """A deployment that may be asked. name: the same in every process, for affinity."""

    name: str
    weight: float
    in_flight: int


def order(strategy: Strategy, choices: Sequence[Choice], key: bytes | None, chance: random.Random) -> list[int]:
    """Positions in `choices`, first to last. key: what affinity follows; without one the least loaded is first."""
    places = range(len(choices))
    match strategy:
        case "ordered":
            return list(places)
        case "weighted":  # by chance without replacement. Source: Efraimidis and Spirakis, 2006
            drawn = [chance.random() ** (1.0 / choice.weight) for choice in choices]
            return sorted(places, key=lambda place: -drawn[place])
        case "session" | "prompt_prefix" if key is not None:
            return _affine(choices, key)
        case _:
            drawn = [chance.random() for _ in choices]
            return sorted(places, key=lambda place: (choices[place].in_flight / choices[place].weight, drawn[place]))


def affinity_key(strategy: Strategy, headers: Iterable[tuple[bytes, bytes]], fields: Mapping[str, Any]) -> bytes | None:
    """What requests have in common that should meet the same deployment, or None. The same in every process."""
    if strategy == "session":
        return _session(headers, fields)
    return _prefix(fields["messages"]) if strategy == "prompt_prefix" else None


def _affine(choices: Sequence[Choice], key: bytes) -> list[int]:
    """Rendezvous hashing: a deployment that comes or goes moves only its own keys. Source: Thaler and Ravishankar, 1998."""

    def score(choice: Choice) -> float:
        drawn = int.from_bytes(hashlib.blake2b(choice.name.encode(), key=key[:64], digest_size=8).digest(), "big")
        return -choice.weight / math.log((drawn + 1) / (2**64 + 2))

    ranked = sorted(range(len(choices)), key=lambda place: -score(choices[place]))
    fair = sum(choice.in_flight for choice in choices) / sum(choice.weight for choice in choices)
    full = [place for place in ranked if choices[place].in_flight > _OVERLOAD * fair * choices[place].weight + _SLACK]
    return [place for place in ranked if place not in full] + full


def _session(headers: Iterable[tuple[bytes, bytes]], fields: Mapping[str, Any]) -> bytes | None:
    for header, value in headers:
        if header == SESSION_HEADER and value:
            return hashlib.blake2b(value, digest_size=32).digest()
    for field in ("prompt_cache_key", "user"):
        given = fields.get(field)
        if isinstance(given, str) and given:
            return hashlib.blake2b(given.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return None


def _prefix(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Of what every later turn of a conversation begins with: the messages up to its first question."""
    digest = hashlib.blake2b(digest_size=32)
    for message in messages:
        digest.update(f"{message.get('role')}:{_beginning(message.get('content'))}\n".encode("utf-8", "surrogatepass"))
        if message.get("role") == "user":
            break
    return digest.digest()


def _beginning(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content[:_PREFIX_CHARACTERS] if isinstance(content, str) else ""
