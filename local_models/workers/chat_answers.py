"""One request's answers, written in the engine thread and emitted piece by piece.

Token -> text -> reasoning, content and tool calls -> stop strings. Stop strings end the content only: what a model thinks
or passes to a tool is not the text that the client bounded.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from local_models.workers.chat_engine import ChatEngine, Prefilled
from local_models.workers.chat_prompt import Prompt
from local_models.workers.chat_replies import Finished, FinishReason, Piece, Started
from local_models.workers.chat_request import ChatRequest
from local_models.workers.detokenizer import Detokenizer
from local_models.workers.jobs import Job
from local_models.workers.qwen_output import Content, Event, QwenOutputParser, ToolCall, ToolCallEnd
from local_models.workers.stop_strings import StopStrings


def write_answers(engine: ChatEngine, request: ChatRequest, prompt: Prompt, job: Job) -> None:
    """The work of one job: n answers one after the other, from one reading of the prompt."""
    read = engine.prefill(prompt, job.checkpoint)
    for choice in range(request.n):
        job.emit(Started(choice))
        own = read if choice == request.n - 1 else engine.copy_of(read)
        _write_answer(engine, request, prompt, own, choice, job)


def _write_answer(engine: ChatEngine, request: ChatRequest, prompt: Prompt, read: Prefilled, choice: int, job: Job) -> None:
    answer = Answer(request, prompt, emit=lambda event: job.emit(Piece(choice, event)))
    sampler = engine.sampler(
        dict(request.sampling), None if request.seed is None else request.seed + choice, prompt, request.thinking_token_budget
    )
    detokenizer = Detokenizer(engine.decode)
    written = 0
    ended = False
    for token_id in engine.tokens(read, sampler, prompt.max_new_tokens):
        job.checkpoint()
        written += 1
        if token_id in engine.end_ids:
            ended = True
            break
        answer.add(detokenizer.feed(token_id))
        if answer.is_complete:
            break
    answer.add(detokenizer.finish())
    job.emit(Finished(choice, answer.finish(ended=ended), written))


class Answer:
    """What one choice has said so far, and whether that is enough."""

    def __init__(self, request: ChatRequest, prompt: Prompt, emit: Callable[[Event], None]) -> None:
        self._parser = QwenOutputParser(thinking=prompt.thinking, tools=request.tools, new_id=lambda: f"call_{uuid.uuid4().hex[:24]}")
        self._stops = StopStrings(request.stop)
        self._one_call = request.tool_choice.name is not None or not request.parallel_tool_calls
        self._emit = emit
        self._called = False
        self.is_complete = False
        self.add(prompt.answer_prefix)

    def add(self, text: str) -> None:
        if text and not self.is_complete:
            self._show(self._parser.feed(text))

    def finish(self, *, ended: bool) -> FinishReason:
        """ended: the model said so itself."""
        truncated = not ended and not self.is_complete
        if not self.is_complete:
            self._show(self._parser.finish(truncated=truncated))
            self._show_content(self._stops.finish())
        if truncated and not self.is_complete:
            return "length"
        return "tool_calls" if self._called and not self._stops.hit else "stop"

    def _show(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Content):
                self._show_content(self._stops.feed(event.text))
                self.is_complete = self._stops.hit
            else:
                if isinstance(event, ToolCall):
                    self._show_content(self._stops.finish())
                    self._called = True
                self._emit(event)
                self.is_complete = isinstance(event, ToolCallEnd) and self._one_call
            if self.is_complete:
                return

    def _show_content(self, text: str) -> None:
        if text:
            self._emit(Content(text))
