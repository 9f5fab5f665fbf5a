"""The small print under an answer or a picture, as text."""

from __future__ import annotations

from chat_app.blocks import plain
from chat_app.records import ImageRequest, Message, Picture, State


def thought_label(message: Message) -> str:
    seconds = message.timings.thought_s
    if seconds is None:
        return "Thoughts"
    return "Thought for a moment" if seconds < 1 else f"Thought for {_seconds(seconds)}"


def answer_line(message: Message) -> str:
    """How it ended if not well, model, tokens a second, time to the first token, tokens: each only if it is known."""
    parts = [":material/stop_circle: Stopped"] if message.state is State.STOPPED else []
    parts += [":material/content_cut: Cut at the limit of tokens"] if message.finish_reason == "length" else []
    parts.append(plain(message.model))
    if (speed := tokens_per_second(message)) is not None:
        parts.append(f"{speed:.0f} tok/s" if speed >= 10 else f"{speed:.1f} tok/s")
    if message.timings.first_token_s is not None:
        parts.append(f"first token {_seconds(message.timings.first_token_s)}")
    if message.usage is not None:
        parts.append(f"{message.usage.completion_tokens} tokens")
    return " · ".join(parts)


def tokens_per_second(message: Message) -> float | None:
    """Speed of the generation alone: the wait for the first token is shown on its own."""
    timings = message.timings
    if message.usage is None or timings.total_s is None or timings.first_token_s is None or message.usage.completion_tokens < 2:
        return None
    generating_s = timings.total_s - timings.first_token_s
    return (message.usage.completion_tokens - 1) / generating_s if generating_s > 0 else None


def picture_line(picture: Picture) -> str:
    parts = [f"seed {picture.seed}"] if picture.seed is not None else []
    parts.append(f"{picture.width}×{picture.height}")
    parts += [_seconds(picture.duration_s)] if picture.duration_s is not None else []
    return " · ".join(parts)


def request_line(request: ImageRequest) -> str:
    """What the pictures were made from, beside what their own lines say."""
    parts = [plain(request.model)]
    parts += [f"{request.num_inference_steps} steps"] if request.num_inference_steps is not None else []
    parts += [f"guidance {request.guidance_scale:g}"] if request.guidance_scale is not None else []
    parts += [f"without {plain(request.negative_prompt)}"] if request.negative_prompt else []
    return f"{plain(request.prompt)}  \n{' · '.join(parts)}"


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
