"""The real vLLM answers the same through the gateway as when it is asked itself: greedy requests of every kind, with the OpenAI SDK.

What may differ is `EXPLAINED`, and nothing else.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from local_models.demo import chat_data
from local_models.demo.world import held_out_scenes, render
from local_models.launch import resolve_model
from tests.adapters.test_remote_media import sends
from tests.gateway.live import live_gateway, settings_of
from tests.scripted_upstream import scripted_upstream

REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
NAME = "demo"
FLAGS = {
    "max-model-len": 2048,
    "enforce-eager": True,
    "reasoning-parser": "qwen3",
    "enable-auto-tool-choice": True,
    "tool-call-parser": "qwen3_xml",
    "no-enable-prefix-caching": True,  # a prefix from the cache is computed in other shapes, and the last bit of a sum depends on those
}
# What may differ, where it stands, and why.
EXPLAINED = {
    "answer": {"id": "of one request, chosen anew for each", "created": "the second in which it was made"},
    "message": {"reasoning_content": "the gateway gives reasoning its older name as well, for clients that read that"},
    "call": {"id": "chosen anew for each"},
}
# Beside those: a picture's URL, which the gateway fetches and vLLM refuses; the test of pictures by URL shows both.

Case = dict[str, Any]
PARALLEL = "two parallel calls"
BUDGET = "a thought of at most 4 tokens"


def cases() -> Iterator[tuple[str, Case]]:
    """(what it is about, the request). Each is asked streamed and whole."""
    off, on = {"extra_body": _thinking(False)}, {"extra_body": _thinking(True)}
    for question in ("What is Tandem?", "Which port does Tandem use?", "How do I start Tandem?", "Who are you?", "What is 12 + 7?"):
        yield f"answer: {question}", _ask(question, **off)
        yield f"reasoning: {question}", _ask(question, **on)
    yield "a silent client", _ask("What is Tandem?")
    yield "a conversation", {"messages": [_said("user", "Hi"), _said("assistant", "Hello!"), _said("user", "What is 3 + 4?")], **off}
    yield "instructions", {"messages": [_said("system", "Answer in one word."), _said("user", "What is 3 + 4?")], **off}
    for limit in (1, 5, 20):
        yield f"max_tokens {limit}", _ask("What is Tandem?", **off, max_tokens=limit)
    yield "max_completion_tokens", _ask("What is Tandem?", **off, max_completion_tokens=7)
    yield "max_tokens in a thought", _ask("What is 12 + 7?", **on, max_tokens=3)
    yield BUDGET, _ask("What is 12 + 7?", extra_body=_thinking(True) | {"thinking_token_budget": 4})
    yield "a stop string", _ask("What is Tandem?", **off, stop=["a"])
    yield "two stop strings", _ask("What is Tandem?", **off, stop=["xyz", " is"])
    yield "logprobs", _ask("What is 2 + 2?", **off, logprobs=True, max_tokens=12)
    yield "top_logprobs", _ask("What is 2 + 2?", **off, logprobs=True, top_logprobs=3, max_tokens=12)
    yield "logprobs of a thought", _ask("What is 2 + 2?", **on, logprobs=True, max_tokens=12)
    drawn = {"temperature": 0.5, "seed": 3}  # vLLM refuses more than one greedy answer
    yield "n = 2", _ask("What is Tandem?", **off, **drawn, n=2, max_tokens=16)
    yield "n = 2 with reasoning", _ask("What is 12 + 7?", **on, **drawn, n=2)
    yield "penalties", _ask("What is Tandem?", presence_penalty=1.0, frequency_penalty=0.5, **off)
    yield "vLLM's own fields", _ask("What is Tandem?", extra_body=_thinking(False) | {"repetition_penalty": 1.1, "min_tokens": 5})
    yield "a bias", _ask("What is Tandem?", logit_bias={"100": -100}, **off)
    yield "a seed", _ask("What is Tandem?", seed=7, **off)
    yield from _constrained()
    yield from _tools()
    yield from _pictures()


def _constrained() -> Iterator[tuple[str, Case]]:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    for thinking in (False, True):
        yield (
            f"JSON schema, thinking {thinking}",
            _ask("What is 2 + 3?", response_format=form, extra_body=_thinking(thinking), max_tokens=80),
        )
    yield "JSON", _ask("Answer as JSON: 2 + 3", response_format={"type": "json_object"}, extra_body=_thinking(False), max_tokens=40)
    for constraint in ({"regex": "[0-9]{2}!"}, {"choice": ["red", "blue"]}, {"json": schema}):
        yield (
            f"structured_outputs {next(iter(constraint))}",
            _ask("What is 2 + 3?", extra_body=_thinking(False) | {"structured_outputs": constraint}, max_tokens=40),
        )


def _tools() -> Iterator[tuple[str, Case]]:
    scenes = held_out_scenes(3, 5, pairs=0.4)
    for number, scene in enumerate(scenes):
        example = chat_data.draw_with_tool(random.Random(number), scene)
        for thinking in (False, True):
            case = _ask(example.question, tools=list(example.tools), extra_body=_thinking(thinking))
            yield f"tool call {number}, thinking {thinking}", case
    example = chat_data.draw_with_tool(random.Random(9), scenes[0])
    name = example.tools[0]["function"]["name"]
    named = {"type": "function", "function": {"name": name}}
    for choice in ("none", "required", named):
        yield (
            f"tool_choice {choice}",
            _ask(example.question, tools=list(example.tools), tool_choice=choice, extra_body=_thinking(False), max_tokens=60),
        )
    forced = "<tool_call>\n<function={0}>\n<parameter=prompt>\na {1} circle\n</parameter>\n</function>\n</tool_call>"
    pair = "\n".join(forced.format(name, colour) for colour in ("red", "blue"))
    yield (
        PARALLEL,
        _ask(
            example.question,
            tools=list(example.tools),
            extra_body=_thinking(False) | {"structured_outputs": {"regex": pair}},
            max_tokens=200,
        ),
    )
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": '{"prompt": "a red circle"}'}} for n in (1, 2)]
    history = [
        _said("user", example.question),
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": f"c{n}", "content": "done"} for n in (1, 2)),
    ]
    yield "after two parallel calls", {"messages": history, "tools": list(example.tools), "extra_body": _thinking(False)}


def _pictures() -> Iterator[tuple[str, Case]]:
    scenes = held_out_scenes(4, 9, pairs=0.4)
    parts = []
    for scene in scenes:
        file = io.BytesIO()
        render(scene, 96).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    question = {"type": "text", "text": "What is in this picture?"}
    for number, part in enumerate(parts):
        for thinking in (False, True):
            message = {"role": "user", "content": [part, question]}
            yield f"picture {number}, thinking {thinking}", {"messages": [message], "extra_body": _thinking(thinking)}
    yield "two pictures", {"messages": [{"role": "user", "content": [*parts[:2], question]}], "extra_body": _thinking(False)}


REFUSED: list[tuple[str, Case]] = [
    ("too long", {"messages": [{"role": "user", "content": "word " * 3000}]}),
    ("a temperature that is none", {"messages": [{"role": "user", "content": "Hi"}], "temperature": -1}),
    ("a tool that is none", {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}]}),
    ("a schema that is none", {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_schema"}}),
]


def _said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _ask(question: str | list[Any], **more: Any) -> Case:
    return {"messages": [_said("user", question)], **more}


def _thinking(enabled: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": enabled}}


def whole(reply: Any) -> dict[str, Any]:
    """What the SDK has read, without what `EXPLAINED` leaves out."""
    document: dict[str, Any] = json.loads(reply.to_json())
    for choice in document["choices"]:
        said = choice["message"] = _compared(choice["message"], "message")
        said["tool_calls"] = [_compared(call, "call") for call in said.get("tool_calls") or []]
    return _compared(document, "answer")


def _compared(document: dict[str, Any], where: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in EXPLAINED[where]}


async def put_together(chunks: Any) -> dict[str, Any]:
    """What was said in a stream, however it was cut: vLLM puts tokens together that are ready at the same time."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    async for part in chunks:
        chunk = json.loads(part.to_json())
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            said = choices.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": {}, "logprobs": [], "finish_reason": None})
            delta = choice["delta"]
            said["content"] += delta.get("content") or ""
            said["reasoning"] += delta.get("reasoning") or ""
            said["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
            said["finish_reason"] = choice.get("finish_reason") or said["finish_reason"]
            for call in delta.get("tool_calls") or []:
                made = said["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                made["name"] += call["function"].get("name") or ""
                made["arguments"] += call["function"].get("arguments") or ""
    return {"choices": choices, "usage": usage}


async def pictures_by_url(direct: AsyncOpenAI, through: AsyncOpenAI) -> list[str]:
    """What is wrong: the gateway must answer as to the picture itself, and vLLM must fetch nothing."""
    file = io.BytesIO()
    render(held_out_scenes(1, 9, pairs=0.4)[0], 96).save(file, "PNG")
    inline = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    async with scripted_upstream(sends(file.getvalue())) as server:

        def case(url: str) -> Case:
            return _ask([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in this picture?"}])

        url = f"http://localhost:{server.port}/a.png"
        refused = await answer(direct, case(url), stream=False)
        wrong = [] if isinstance(refused, tuple) and not server.asked else [f"vLLM fetched a picture: {refused}"]
        passed, wanted = await answer(through, case(url), stream=False), await answer(direct, case(inline), stream=False)
        if passed != wanted:
            wrong.append(f"not the same picture\n  inline: {wanted}\n  by URL: {passed}")
        return wrong


@asynccontextmanager
async def both(tmp_path: Path) -> AsyncIterator[tuple[AsyncOpenAI, AsyncOpenAI]]:
    """(one SDK that asks vLLM itself, one that asks the gateway before the same vLLM)."""
    # On a CPU, vLLM computes linear attention in bfloat16 only.
    upstream = {
        "kind": "vllm",
        "python": REAL_VLLM,
        "device": "cpu",
        "dtype": "bfloat16",
        "args": FLAGS,
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    demo = str(resolve_model("builtin:demo"))
    model = {"name": NAME, "kind": "chat", "reasoning": True, "deployments": [{"upstream": "vllm", "model": demo}]}
    settings = settings_of([model], {"vllm": upstream}, remote_images={"private_hosts": ["localhost"]})
    async with (
        live_gateway(settings, data_dir=tmp_path) as live,
        live.sdk(timeout=600) as through,
        live.runtime.lease(f"vllm:{demo}") as lease,
        AsyncOpenAI(base_url=f"http://{lease.host}:{lease.port}/v1", api_key=lease.key or "", timeout=600, max_retries=0) as direct,
    ):
        yield direct, through


async def answer(client: AsyncOpenAI, case: Case, *, stream: bool) -> Any:
    """Text, calls, finish reasons, logprobs and usage; or how it was refused."""
    asked = {"model": NAME, "temperature": 0, "max_tokens": 120, **case}
    if "max_completion_tokens" in case:
        del asked["max_tokens"]
    try:
        return await _said_to(client, asked, stream=stream)
    except openai.APIStatusError as error:
        body: Any = error.body
        return error.status_code, body["message"]


async def _said_to(client: AsyncOpenAI, asked: Case, *, stream: bool) -> Any:
    if not stream:
        return whole(await client.chat.completions.create(**asked))
    return await put_together(await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
async def test_the_gateway_changes_nothing_of_what_vllm_says(tmp_path: Path) -> None:
    different: list[str] = []
    asked = 0
    answers: dict[tuple[str, bool], Any] = {}
    async with both(tmp_path) as (direct, through):
        for name, case in (*cases(), *REFUSED):
            for stream in (False, True):
                asked += 1
                itself, passed = [await answer(client, case, stream=stream) for client in (direct, through)]
                answers[name, stream] = passed
                refused = isinstance(itself, tuple)
                if itself != passed or refused is not ((name, case) in REFUSED):
                    different.append(f"{name}, stream {stream}\n  vLLM:    {itself}\n  gateway: {passed}")
        by_url = await pictures_by_url(direct, through)
    print(f"\n{asked - len(different)} of {asked} answers are the same", *different, sep="\n")
    assert by_url == []
    assert asked >= 60
    assert not different, "\n".join(different)
    streamed = answers[PARALLEL, True]["choices"][0]["calls"]
    assert {index: json.loads(call["arguments"]) for index, call in streamed.items()} == {
        0: {"prompt": "a red circle"},
        1: {"prompt": "a blue circle"},
    }
    assert len(answers[PARALLEL, False]["choices"][0]["message"]["tool_calls"]) == 2
    thought = answers[BUDGET, True]["choices"][0]
    assert thought["reasoning"]
    assert len(thought["reasoning"].split()) <= 4
    assert thought["content"]
