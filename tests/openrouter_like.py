"""A scenario with OpenRouter's manners: comments, reasoning twice told, usage with cost, and its ways to fail, chosen by the prompt.

Source of the shapes: OpenRouter docs (streaming, errors, reasoning, usage accounting).
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.scripted_upstream import Exchange, Request, chunk

COST = 0.00012
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 4,
    "total_tokens": 9,
    "cost": COST,
    "cost_details": {"upstream_inference_cost": None},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
COMMENT = b": OPENROUTER PROCESSING\n\n"


async def openrouter_like(request: Request, exchange: Exchange) -> None:
    asked = request.json
    match asked["messages"][-1]["content"]:
        case "402":
            await exchange.json(402, {"error": {"code": 402, "message": "Insufficient credits"}})
        case "429":
            error = {"code": 429, "message": "Rate limited", "metadata": {"raw": "slow down", "provider_name": "X"}}
            await exchange.json(429, {"error": error}, retry_after="7")
        case "error in 200":
            error = {"code": 503, "message": "No provider", "metadata": {"error_type": "provider_overloaded"}}
            if asked.get("stream"):
                await exchange.start_stream()
                await exchange.chunk(COMMENT)
                await exchange.events({"id": "gen-1", "error": error, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]})
                await exchange.end_stream()
            else:
                await exchange.json(200, {"error": error})
        case "cut":
            await exchange.start_stream()
            await exchange.chunk(COMMENT)
            await exchange.events(chunk("Hel", role="assistant"))
            await asyncio.sleep(0.05)
            exchange.cut()
        case "error late":
            await exchange.start_stream()
            await exchange.events(chunk("Hel", role="assistant"))
            await asyncio.sleep(0.05)  # the first content is out before the error comes
            error = {"code": 502, "message": "Provider died"}
            await exchange.events({"id": "gen-1", "error": error, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]})
            await exchange.end_stream()
        case _:
            await _answer(asked, exchange)


async def _answer(asked: dict[str, Any], exchange: Exchange) -> None:
    unknown = {"chat_template_kwargs", "reasoning_effort", "enable_thinking"} & asked.keys()
    if unknown or "/" not in asked["model"]:
        await exchange.json(400, {"error": {"code": 400, "message": f"bad request: {sorted(unknown)} {asked['model']}"}})
        return
    reasoning = asked.get("reasoning", {})
    thinks = reasoning.get("enabled", True) and reasoning.get("effort") != "none"
    thought: dict[str, Any] = (
        {"reasoning": "The user greets.", "reasoning_details": [{"type": "reasoning.text", "text": "The user greets."}]} if thinks else {}
    )
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "Hello there", "refusal": None, **thought}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "native_finish_reason": "stop"}
        head = {"id": "gen-1", "object": "chat.completion", "created": 1, "model": asked["model"], "provider": "X"}
        await exchange.json(200, {**head, "choices": [choice], "usage": USAGE})
        return
    await exchange.start_stream()
    await exchange.chunk(COMMENT)
    await exchange.chunk(COMMENT)
    deltas = [chunk("", role="assistant", **thought)] if thinks else []
    await exchange.events(*deltas, chunk("Hello", role="assistant", reasoning=None))
    await exchange.chunk(COMMENT)
    await exchange.events(chunk(" there", role="assistant"), chunk("", finish="stop"))
    await exchange.events({**chunk("", role="assistant"), "usage": USAGE}, "[DONE]")
    await exchange.end_stream()
