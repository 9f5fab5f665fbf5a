"""From a request to the tokens the model reads: chat template, forced tool calls, images, context bound.

The prompt remembers two things about its own end, because the answer cannot be read without them: whether it opened
<think>, and the beginning of a forced tool call that the model only continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError
from PIL import Image

from local_models.workers.chat_messages import Conversation, read_messages
from local_models.workers.chat_request import ChatRequest, ToolChoice
from local_models.workers.errors import ApiError
from local_models.workers.qwen_output import CALL, FUNCTION, THINK, THINK_END


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]: ...
    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class EncodedImages:
    """pixel_values and image_grid_thw as the vision tower takes them (tensors), and how many tokens each image is."""

    pixel_values: Any
    image_grid_thw: Any
    token_counts: list[int]


class ImageEncoder(Protocol):
    image_token_id: int

    def encode(self, images: Sequence[Image.Image]) -> EncodedImages: ...


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    max_new_tokens: int
    thinking: bool
    answer_prefix: str = ""
    images: EncodedImages | None = None


class PromptBuilder:
    def __init__(self, tokenizer: Tokenizer, images: ImageEncoder | None, *, context_length: int, model_name: str) -> None:
        self._tokenizer = tokenizer
        self._images = images
        self._context_length = context_length
        self._model_name = model_name
        self._template = _template_text(tokenizer.chat_template)

    def build(self, request: ChatRequest) -> Prompt:
        """Raises ApiError for messages the model cannot read, and context_length_exceeded."""
        conversation = read_messages(request.messages)
        if request.tools is not None and CALL not in self._template:
            raise ApiError(
                f"The model '{self._model_name}' has no tool calls in its chat template; leave 'tools' out or choose another model.",
                param="tools",
                code="unsupported_value",
            )
        text, answer_prefix = self._rendered(conversation, request)
        token_ids: list[int] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        images = self._encode(conversation.images)
        if self._images is not None:
            token_ids = place_images(token_ids, self._images.image_token_id, images.token_counts if images else [])
        return Prompt(
            token_ids=token_ids,
            max_new_tokens=room_for_answer(len(token_ids), self._context_length, request.max_tokens),
            thinking=not answer_prefix and text.rstrip().endswith(THINK),
            answer_prefix=answer_prefix,
            images=images,
        )

    def _rendered(self, conversation: Conversation, request: ChatRequest) -> tuple[str, str]:
        """The prompt's text, and the part of it that belongs to the answer."""
        kwargs = dict(request.template_kwargs)
        if request.tool_choice.required:
            kwargs["enable_thinking"] = False  # a forced call starts the answer: there is no room to think first
        try:
            text = self._tokenizer.apply_chat_template(
                conversation.messages, tools=request.tools, add_generation_prompt=True, tokenize=False, **kwargs
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(f"The model's chat template refuses these messages: {error}", param="messages", code="invalid_value") from error
        prefix = forced_call(request.tool_choice, xml=FUNCTION in self._template)
        if prefix and text.rstrip().endswith(THINK):
            text = f"{text.rstrip()}\n\n{THINK_END}\n\n"
        return text + prefix, prefix

    def _encode(self, images: list[Image.Image]) -> EncodedImages | None:
        if not images:
            return None
        if self._images is None:
            raise ApiError(
                f"The model '{self._model_name}' reads text only and the messages hold an image;"
                " remove it or choose a model with image input.",
                param="messages",
                code="unsupported_content",
            )
        return self._images.encode(images)


def forced_call(choice: ToolChoice, *, xml: bool) -> str:
    """How the answer must begin so that it can only go on as a tool call."""
    if not choice.required:
        return ""
    if xml:
        return f"{CALL}\n{FUNCTION}" + (f"{choice.name}>\n" if choice.name else "")
    return f'{CALL}\n{{"name": "' + (f'{choice.name}", "arguments": ' if choice.name else "")


def place_images(token_ids: list[int], image_token_id: int, token_counts: Sequence[int]) -> list[int]:
    """The template writes one placeholder for an image; the model wants one for each of its tokens."""
    placeholders = token_ids.count(image_token_id)
    if placeholders != len(token_counts):
        raise ApiError(
            f"The messages hold {len(token_counts)} images but {placeholders} image placeholders;"
            " remove the model's reserved image token from the text.",
            param="messages",
            code="invalid_value",
        )
    counts = iter(token_counts)
    return [out for token_id in token_ids for out in ([token_id] * next(counts) if token_id == image_token_id else [token_id])]


def room_for_answer(prompt_tokens: int, context_length: int, max_tokens: int | None) -> int:
    """Tokens the answer may have: what the client asked for, as far as the context goes."""
    room = context_length - prompt_tokens
    if room < 1:
        raise ApiError(
            f"The prompt has {prompt_tokens} tokens and the model's context holds {context_length}, the answer included;"
            " shorten the messages.",
            param="messages",
            code="context_length_exceeded",
        )
    return room if max_tokens is None else min(max_tokens, room)


def _template_text(template: Any) -> str:
    """Every template of a tokenizer as one string, to look for what it knows."""
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template or "")
