"""The last two questions to a vLLM that starts: do you list your model, and can you make one token of it?

Its health says too little: an engine whose kernels do not fit the checkpoint loads, says that it is healthy, and dies of its first request.
That request is made here, so that no client has to.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from local_models.health import Answer, exchange, split_answer

LISTING_TIMEOUT_S = 10.0
PROMPT = "One token is asked for."  # of several tokens: a prompt of a single one takes other kernels than any chat does
DEAD_ENGINE = "EngineCore encountered an issue"  # how vLLM begins to say so. Source: vllm/v1/engine/exceptions.py, 0.17 to 0.32
EXCERPT = 300  # characters of an answer that a message repeats


async def ask_for_model(host: str, port: int, key: str, model: str) -> str | None:
    """None when `model` is listed, else what it does instead, as a clause. Raises OSError, TimeoutError where it does not answer."""
    async with asyncio.timeout(LISTING_TIMEOUT_S):
        answer = split_answer(await exchange(host, port, "GET", "/v1/models", headers=_authorization(key)))
    if answer.status != 200:
        return f"it answers GET /v1/models with {_shown(answer)}"
    document = _document(answer)
    models = document.get("data") if document is not None else None
    names = [str(entry.get("id")) for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    return None if model in names else f"it does not list the model '{model}' in GET /v1/models, but {', '.join(names) or 'nothing'}"


async def ask_for_token(host: str, port: int, key: str, model: str) -> str | None:
    """None when it has made a token, else what it did instead, as a clause. Takes as long as it takes: the caller bounds it."""
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}).encode()
    try:
        answer = split_answer(await exchange(host, port, "POST", "/v1/completions", headers=_authorization(key), body=body))
    except OSError as error:
        return f"it broke the connection at its first request ({error.strerror or error})"
    if answer.status is None:
        return "it closed the connection at its first request"
    if answer.status != 200:
        return f"it answered its first request, one token, with {_shown(answer)}"
    document = _document(answer)
    made = document is not None and isinstance(document.get("choices"), list) and document["choices"]
    return None if made else f"its first answer, to a request for one token, has no choices: {_shown(answer)}"


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _document(answer: Answer) -> dict[str, Any] | None:
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _shown(answer: Answer) -> str:
    """Status and message, as far as they are readable."""
    document = _document(answer)
    error = (document or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else answer.body.decode(errors="replace")
    if text.startswith(DEAD_ENGINE):
        text = "its engine died"  # why stands in its log
    return f"{answer.status} ({' '.join(text.split())[:EXCERPT]})"
