"""The demo chat model says the same under Tandem's own worker and under the real vLLM: 100 greedy requests through the gateway to each."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from local_models.demo import chat_data, outside
from local_models.demo.example import Example
from local_models.demo.sums import small_sum
from local_models.demo.tandem_facts import load_topics
from local_models.demo.world import held_out_scenes, render
from local_models.launch import resolve_model
from tests.gateway.live import live_gateway, settings_of

REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
FLAGS = {
    "max-model-len": 2048,
    "enforce-eager": True,
    "reasoning-parser": "qwen3",
    "enable-auto-tool-choice": True,
    "tool-call-parser": "qwen3_xml",
}
LEAST = 0.95


def requests() -> list[Example]:
    """Some of everything that the model can be asked, half of it with reasoning."""
    rng = random.Random(7)
    topics = load_topics("tandem")
    examples = [Example(question, "", "") for topic in rng.sample(topics, 45) for question in topic.held_out[:1]]
    examples += [Example(topic.held_out[0], "", "") for topic in load_topics("small_talk")[:8]]
    examples += [Example(question, "", "") for question in outside.held_out()[:8]]
    examples += [small_sum(rng) for _ in range(14)]
    scenes = held_out_scenes(30, 9, pairs=0.4)
    examples += [chat_data.draw_with_tool(rng, scene) for scene in scenes[:10]]
    examples += [Example("What is in this picture?", "", "", picture=scene) for scene in scenes[10:]]
    return [replace(example, thinking=i % 2 == 0) for i, example in enumerate(examples)][:105]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
async def test_the_worker_and_vllm_say_the_same(tmp_path: Path) -> None:
    demo = str(resolve_model("builtin:demo"))
    # On a CPU, vLLM computes linear attention in bfloat16 only; the worker computes in float32.
    upstreams = {
        "ours": {"kind": "transformers", "device": "cpu"},
        "theirs": {
            "kind": "vllm",
            "python": REAL_VLLM,
            "device": "cpu",
            "dtype": "bfloat16",
            "args": FLAGS,
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        },
    }
    models = [{"name": name, "kind": "chat", "deployments": [{"upstream": name, "model": demo}]} for name in upstreams]
    examples = requests()
    assert len(examples) >= 100
    async with live_gateway(settings_of(models, upstreams), data_dir=tmp_path) as live, live.sdk(timeout=600) as client:
        said = {name: [await answer(client, name, example) for example in examples] for name in upstreams}
    different = [
        f"{example.question!r}\n  worker: {ours}\n  vLLM:   {theirs}"
        for example, ours, theirs in zip(examples, said["ours"], said["theirs"], strict=True)
        if ours != theirs
    ]
    print(f"\n{len(examples) - len(different)} of {len(examples)} answers are the same", *different, sep="\n")
    assert len(different) <= (1 - LEAST) * len(examples), "\n".join(different)


async def answer(client: AsyncOpenAI, model: str, example: Example) -> dict[str, Any]:
    """What the client sees; blank lines around a text are not compared, since vLLM keeps those that our worker strips."""
    content: Any = example.question
    if example.picture:
        content = [{"type": "image_url", "image_url": {"url": data_url(example)}}, {"type": "text", "text": example.question}]
    messages: Any = [*example.history, {"role": "user", "content": content}]
    tools: Any = {"tools": list(example.tools)} if example.tools else {}
    reply = await client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=250, extra_body={"enable_thinking": example.thinking}, **tools
    )
    message = reply.choices[0].message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or [] if call.type == "function"]
    reasoning = getattr(message, "reasoning", None) or ""
    return {
        "reasoning": reasoning.strip(),
        "content": (message.content or "").strip(),
        "calls": calls,
        "finish": reply.choices[0].finish_reason,
        "completion_tokens": reply.usage.completion_tokens if reply.usage else None,
    }


def data_url(example: Example) -> str:
    assert example.picture
    file = io.BytesIO()
    render(example.picture, 96).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
