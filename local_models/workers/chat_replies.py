"""OpenAI's objects out of what the engine thread emits: chunks and their frames, or one whole completion."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from local_models.workers.errors import ApiError
from local_models.workers.jobs import IDLE
from local_models.workers.qwen_output import Content, Event, Reasoning, ToolArguments, ToolCall, ToolCallEnd
from local_models.workers.serving import KEEP_ALIVE, sse

FinishReason = Literal["stop", "length", "tool_calls"]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Started:
    """The prompt is read; this choice is being written."""

    choice: int


@dataclass(frozen=True)
class Piece:
    choice: int
    event: Event


@dataclass(frozen=True)
class Finished:
    choice: int
    reason: FinishReason
    completion_tokens: int


@dataclass
class _Message:
    reasoning: str = ""
    content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: FinishReason = "stop"

    def add(self, event: Event) -> None:
        if isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, ToolCall):
            self.tool_calls.append({"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}})
        elif isinstance(event, ToolArguments):
            self.tool_calls[event.index]["function"]["arguments"] += event.text

    def body(self, choice: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if self.tool_calls and not self.content else self.content}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return {"index": choice, "message": message, "logprobs": None, "finish_reason": self.finish_reason}


class ChatReply:
    """The answer to one request, as a stream or whole."""

    def __init__(self, model: str, prompt_tokens: int, *, include_usage: bool) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._include_usage = include_usage

    async def frames(self, items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Server-sent events. An ApiError before the first one is raised; a later one is told in the stream."""
        started = False
        try:
            async for item in items:
                if item is IDLE:
                    started = True
                    yield KEEP_ALIVE
                elif (choice := self._streamed(item)) is not None:
                    started = True
                    yield sse(self._chunk([choice]))
        except ApiError as error:
            if not started:
                raise
            yield sse(error.body()) + DONE
            return
        if self._include_usage:
            yield sse({**self._chunk([]), "usage": self._usage()})
        yield DONE

    async def whole(self, items: AsyncIterator[Any]) -> dict[str, Any]:
        messages: dict[int, _Message] = {}
        async for item in items:
            if isinstance(item, Started):
                messages[item.choice] = _Message()
            elif isinstance(item, Piece):
                messages[item.choice].add(item.event)
            elif isinstance(item, Finished):
                messages[item.choice].finish_reason = item.reason
                self._completion_tokens += item.completion_tokens
        choices = [message.body(choice) for choice, message in sorted(messages.items())]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    def _streamed(self, item: Started | Piece | Finished) -> dict[str, Any] | None:
        """The chunk's choice; None for an item that shows nothing."""
        reason: FinishReason | None = None
        delta: dict[str, Any] | None = {}
        if isinstance(item, Started):
            delta = {"role": "assistant", "content": ""}
        elif isinstance(item, Piece):
            delta = delta_of(item.event)
        else:
            reason = item.reason
            self._completion_tokens += item.completion_tokens
        return None if delta is None else {"index": item.choice, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _usage(self) -> dict[str, int]:
        completion = self._completion_tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": completion, "total_tokens": self._prompt_tokens + completion}


def delta_of(event: Event) -> dict[str, Any] | None:
    """A call's id, type and name come once and first; its arguments follow as pieces under the same index."""
    if isinstance(event, Reasoning):
        return {"reasoning": event.text}
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, ToolCall):
        function = {"name": event.name, "arguments": ""}
        return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    if isinstance(event, ToolArguments):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
    assert isinstance(event, ToolCallEnd)
    return None
