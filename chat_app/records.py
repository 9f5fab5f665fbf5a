"""What a conversation is made of: chats, messages, pictures.

Plain frozen values. The store keeps them, runs write new versions of them, the page draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Kind = Literal["text", "image"]
Role = Literal["user", "assistant"]


class State(StrEnum):
    """The life of a run: the first four are alive, the last three are final."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def active(self) -> bool:
        return self in ACTIVE_STATES


ACTIVE_STATES = frozenset({State.QUEUED, State.LOADING, State.RUNNING, State.CANCELLING})


@dataclass(frozen=True)
class Failure:
    """An error in words a person can act on, and what a bug report needs."""

    message: str
    code: str | None = None
    request_id: str | None = None
    status: int | None = None


@dataclass(frozen=True)
class Picture:
    """One image file of the store, named by its content."""

    digest: str
    media_type: str
    width: int
    height: int
    seed: int | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class ImageRequest:
    """Everything that decides the pixels, as the gateway spells it. None: the model's own value."""

    model: str
    prompt: str
    size: str
    n: int = 1
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds since the run began, unless said otherwise."""

    first_token_s: float | None = None
    thought_s: float | None = None  # how long the reasoning took
    total_s: float | None = None


@dataclass(frozen=True)
class Message:
    """One turn. An assistant's turn is also the record of the run that makes it; they share the id."""

    id: int
    chat_id: str
    role: Role
    kind: Kind
    state: State
    created_at: float
    model: str = ""
    text: str = ""
    reasoning: str = ""
    thinking: bool | None = None
    pictures: tuple[Picture, ...] = ()
    request: ImageRequest | None = None
    usage: Usage | None = None
    timings: Timings = Timings()
    finish_reason: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Chat:
    id: str
    title: str
    model: str
    created_at: float
    updated_at: float
