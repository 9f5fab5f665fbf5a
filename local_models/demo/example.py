"""One example of a conversation that the chat model learns: everything up to the assistant's turn, and that turn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from local_models.demo.world import Scene

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """question: the last user text. history: turns before, without reasoning. follow: turns after it. picture: a scene the user attached.

    steps_needed: the answer cannot be found without the steps of the reasoning;
    answer_with_steps: what to say where there is no reasoning, if not the steps and the answer.
    """

    question: str
    answer: str
    reasoning: str
    history: tuple[Message, ...] = ()
    follow: tuple[Message, ...] = ()
    tool_prompt: str | None = None
    tools: tuple[dict[str, Any], ...] = field(default=())
    picture: Scene | None = None
    thinking: bool = True
    steps_needed: bool = False
    answer_with_steps: str | None = None

    def prompt_messages(self) -> list[Message]:
        content: Any = self.question
        if self.picture:
            content = [{"type": "image"}, {"type": "text", "text": self.question}]
        return [*self.history, {"role": "user", "content": content}, *self.follow]

    def messages(self) -> list[Message]:
        """With the assistant's turn, as the chat template takes it."""
        turn: Message = {"role": "assistant", "content": self.answer}
        if self.thinking:
            turn["reasoning_content"] = self.reasoning
        if self.tool_prompt is not None:
            turn["tool_calls"] = [tool_call(self.tool_prompt)]
        return [*self.prompt_messages(), turn]


def answered(example: Example, thinking: bool) -> Example:
    """With thinking on or off. The steps of a sum are needed in any case: without reasoning they stand in the answer."""
    if example.steps_needed and not thinking:
        return replace(example, thinking=False, answer=example.answer_with_steps or f"{example.reasoning} So {example.answer}")
    return replace(example, thinking=thinking)


def tool_call(prompt: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "generate_image", "arguments": {"prompt": prompt}}}
