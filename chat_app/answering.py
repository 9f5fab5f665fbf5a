"""The work of a text run: ask the gateway, take in the stream, say why the first token takes its time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from chat_app.catalog import Progress, waiting_for
from chat_app.client import Gateway
from chat_app.records import State, Usage
from chat_app.runs import Run

POLL_EVERY_S = 0.4


class BrokenOff(Exception):
    """The stream ended without saying that the answer is complete."""

    def __init__(self) -> None:
        super().__init__("the stream ended before the answer was complete; try again")


@dataclass(frozen=True)
class Question:
    model: str
    messages: Sequence[ChatCompletionMessageParam]
    thinking: bool | None = None  # None: the model cannot choose, or nobody asked it to


def answer(run: Run, gateway: Gateway, question: Question) -> None:
    """Stream the answer into the run. Raises what the SDK raises, and BrokenOff."""
    run.show(Progress(f"Waiting for {question.model}"), State.QUEUED)
    threading.Thread(target=_explain_the_wait, args=(run, gateway, question.model), name=f"wait-{run.id}", daemon=True).start()
    with gateway.session(run.line) as client:
        stream = client.chat.completions.create(
            model=question.model,
            messages=question.messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=None if question.thinking is None else {"chat_template_kwargs": {"enable_thinking": question.thinking}},
        )
        with stream:
            run.request_id = stream.response.headers.get("x-request-id")
            for chunk in stream:
                _take(run, chunk)
    if run.snapshot().message.finish_reason is None:
        raise BrokenOff


def _take(run: Run, chunk: ChatCompletionChunk) -> None:
    if chunk.usage is not None:
        run.note(usage=Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
    for choice in chunk.choices:
        if reasoning := _reasoning_of(choice.delta.model_extra or {}):
            run.think(reasoning)
        if choice.delta.content:
            run.say(choice.delta.content)
        if choice.finish_reason is not None:
            run.note(finish_reason=choice.finish_reason)


def _reasoning_of(extra: dict[str, object]) -> str | None:
    """Both spellings carry the same text, so one of them is enough."""
    reasoning = extra.get("reasoning") or extra.get("reasoning_content")
    return reasoning if isinstance(reasoning, str) else None


def _explain_the_wait(run: Run, gateway: Gateway, model: str) -> None:
    while not run.spoken.wait(POLL_EVERY_S):
        try:
            progress = waiting_for(gateway.model(model))
        except openai.OpenAIError:
            continue  # the run's own request meets the same trouble and reports it
        run.show(progress, State.QUEUED if progress.fraction is None else State.LOADING)
