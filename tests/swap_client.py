"""A user's script, with the official SDK and nothing else: run unchanged against any gateway. Prints what it got as JSON.

python swap_client.py BASE_URL KEY MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import APIStatusError, OpenAI


def main() -> None:
    base_url, key, model = sys.argv[1:]
    client = OpenAI(base_url=base_url, api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "Hello"}]
    said: dict[str, Any] = {"models": [entry.id for entry in client.models.list()], "retrieved": client.models.retrieve(model).id}
    modes: dict[str, Any] = {"thinking": {}, "not thinking": {"reasoning_effort": "none"}}
    for name, options in modes.items():
        text, reasoning, finish, usage = "", "", None, None
        stream = client.chat.completions.create(
            model=model, messages=messages, stream=True, temperature=0, stream_options={"include_usage": True}, **options
        )
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                extra = choice.delta.model_extra or {}
                assert extra.get("reasoning") == extra.get("reasoning_content"), "both names say the same"
                reasoning += extra.get("reasoning") or ""
                finish = choice.finish_reason or finish
        whole = client.chat.completions.create(model=model, messages=messages, temperature=0, **options)
        message = whole.choices[0].message
        said[name] = {
            "text": text,
            "reasoning": reasoning,
            "finish": finish,
            "total_tokens": usage.total_tokens if usage else None,
            "whole text": message.content,
            "whole reasoning": (message.model_extra or {}).get("reasoning_content") or "",
            "whole finish": whole.choices[0].finish_reason,
        }
    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
    except APIStatusError as error:
        said["unknown model"] = [type(error).__name__, error.code]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
