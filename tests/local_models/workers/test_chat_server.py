"""The chat worker over real HTTP: a real process, a real (untrained) Qwen3.5."""

from __future__ import annotations

import base64
import io
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.local_models.workers.running import RunningWorker, events

HI = [{"role": "user", "content": "Hi"}]
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
ENDLESS = {"max_tokens": 1900, **NO_THINKING}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TIME = {"type": "function", "function": {"name": "time"}}


def ask(worker: RunningWorker, **fields: Any) -> httpx.Response:
    return worker.client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "max_tokens": 4, **NO_THINKING, **fields})


def stream(worker: RunningWorker, **fields: Any) -> list[Any]:
    body = {"model": "tiny", "messages": HI, "max_tokens": 4, **NO_THINKING, "stream": True, **fields}
    with worker.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        return list(events(response))


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def data_url(width: int, height: int, mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 1).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]}]


def test_a_stream_has_openais_shape(chat: RunningWorker) -> None:
    *chunks, last, end = stream(chat, stream_options={"include_usage": True})
    assert end == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {(chunk["object"], chunk["model"], chunk["id"]) for chunk in chunks} == {("chat.completion.chunk", "tiny", last["id"])}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]] == ["length"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_only_when_asked(chat: RunningWorker) -> None:
    assert all("usage" not in chunk for chunk in stream(chat)[:-1])


def test_the_same_seed_gives_the_same_answer_streamed_or_whole(chat: RunningWorker) -> None:
    whole = ask(chat, seed=7, max_tokens=30).json()["choices"][0]["message"]["content"]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in stream(chat, seed=7, max_tokens=30)[:-1]]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 5
    assert ask(chat, seed=8, max_tokens=30).json()["choices"][0]["message"]["content"] != whole


def test_temperature_zero_needs_no_seed(chat: RunningWorker) -> None:
    first, second = (ask(chat, temperature=0, max_tokens=20).json()["choices"][0]["message"] for _ in range(2))
    assert first == second


def test_a_thought_is_not_longer_than_its_budget(chat: RunningWorker) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "seed": 3, "max_tokens": 24}
    short = ask(chat, thinking_token_budget=8, **thinking).json()
    message = short["choices"][0]["message"]
    assert message["reasoning"]
    assert message["content"]
    assert short["usage"]["completion_tokens"] == 24
    unlimited = [ask(chat, **thinking, **more).json()["choices"] for more in ({}, {"thinking_token_budget": -1})]
    assert unlimited[0] == unlimited[1]
    assert unlimited[0][0]["message"]["content"] == ""
    silent = {**NO_THINKING, "seed": 3, "max_tokens": 8}
    assert ask(chat, thinking_token_budget=2, **silent).json()["choices"] == ask(chat, **silent).json()["choices"]


def test_thinking_goes_to_reasoning_unless_switched_off(chat: RunningWorker) -> None:
    thinking = ask(chat, chat_template_kwargs={"enable_thinking": True}).json()["choices"][0]["message"]
    assert thinking["content"] == ""
    assert thinking["reasoning"]
    answer = ask(chat).json()["choices"][0]["message"]
    assert answer["content"]
    assert "reasoning" not in answer


def test_stop_ends_the_content_before_the_stop_string(chat: RunningWorker) -> None:
    text = ask(chat, seed=3, max_tokens=40).json()["choices"][0]["message"]["content"]
    stop = text[8:10]
    choice = ask(chat, seed=3, max_tokens=40, stop=[stop, "never"]).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    streamed = stream(chat, seed=3, max_tokens=40, stop=stop)[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == text[: text.index(stop)]


def test_several_choices_share_the_prompt_and_differ(chat: RunningWorker) -> None:
    body = ask(chat, n=3, seed=1, max_tokens=12).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    assert body["usage"]["completion_tokens"] == 36
    second = ask(chat, seed=2, max_tokens=12).json()["choices"][0]["message"]["content"]
    assert body["choices"][1]["message"]["content"] == second
    starts = [chunk["choices"][0] for chunk in stream(chat, n=2)[:-1] if "role" in chunk["choices"][0]["delta"]]
    assert [start["index"] for start in starts] == [0, 1]


def test_a_forced_call_names_its_function_first(chat: RunningWorker) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    deltas = [chunk["choices"][0] for chunk in stream(chat, tools=[WEATHER, TIME], tool_choice=choice)[:-1]]
    calls = [piece for delta in deltas for piece in delta["delta"].get("tool_calls", [])]
    assert calls[0]["index"] == 0
    assert calls[0]["type"] == "function"
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert deltas[-1]["finish_reason"] == "length"
    whole = ask(chat, tools=[TIME], tool_choice="required").json()["choices"][0]["message"]
    assert whole["content"] is None
    assert whole["tool_calls"][0]["function"]["name"] == "time"


def test_a_history_of_calls_and_results_is_read(chat: RunningWorker) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    history = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert ask(chat, messages=history, tools=[WEATHER]).status_code == 200
    call["function"] = {"name": "weather", "arguments": '{"city": "U'}
    error = error_of(ask(chat, messages=history, tools=[WEATHER]))
    assert error["param"] == "messages[2].tool_calls[0].function.arguments"


def test_an_image_costs_its_tokens_and_changes_the_answer(chat: RunningWorker) -> None:
    words = ask(chat, messages=[{"role": "user", "content": "What is it?"}], temperature=0).json()
    seen = ask(chat, messages=picture(data_url(64, 96)), temperature=0).json()
    assert seen["usage"]["prompt_tokens"] - words["usage"]["prompt_tokens"] == 2 * 3 + 2
    again = ask(chat, messages=[{"role": "user", "content": "What is it?"}], temperature=0).json()
    assert again["choices"] == words["choices"]  # the image's positions do not stick to the next prompt


def test_transparent_and_grey_images_are_read(chat: RunningWorker) -> None:
    for mode in ("RGBA", "LA", "L", "1", "P"):
        assert ask(chat, messages=picture(data_url(40, 40, mode))).status_code == 200


REFUSED_IMAGES = {
    "http://127.0.0.1/cat.png": "this worker fetches nothing",
    "data:image/png,abc": "not base64",
    "data:image/png;base64,@@": "base64 is broken",
    "data:image/png;base64,aGVsbG8=": "damaged or of an unknown kind",
    data_url(6000, 5000, "1"): "limit is 24000000 pixels",
    data_url(800, 4, "1"): "one side may be at most",
}


@pytest.mark.parametrize("url", REFUSED_IMAGES)
def test_images_that_cannot_be_read_are_refused(chat: RunningWorker, url: str) -> None:
    response = ask(chat, messages=picture(url))
    assert response.status_code == 400
    assert REFUSED_IMAGES[url] in error_of(response)["message"]
    assert error_of(response)["param"] == "messages[0].content[1].image_url.url"


REFUSED_FIELDS: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "other"}, 404, "model", "serves 'tiny'"),
    ({"messages": []}, 400, "messages", "at least one message"),
    ({"messages": "hi"}, 400, "messages", "an array"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "system, developer, user"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "a string or an array"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "messages[0].content[0].type", "'text' or 'image_url'"),
    ({"messages": [*HI, {"role": "system", "content": "x"}]}, 400, "messages", "System message must be at the beginning"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages", "context holds 2048"),
    ({"messages": [{"role": "user", "content": "<|image_pad|>"}]}, 400, "messages", "reserved image token"),
    ({"max_tokens": 0}, 400, "max_tokens", "from 1 to"),
    ({"temperature": 3}, 400, "temperature", "from 0 to 2"),
    ({"top_p": "x"}, 400, "top_p", "a number"),
    ({"n": 5}, 400, "n", "from 1 to 4"),
    ({"stop": [""]}, 400, "stop", "none of them empty"),
    ({"stream": "yes"}, 400, "stream", "true or false"),
    ({"tools": [{"type": "web"}]}, 400, "tools[0]", '"function"'),
    ({"tool_choice": "required"}, 400, "tool_choice", "'tools' is empty"),
    ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, "tool_choice", "one of time"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "plain text only"),
    ({"structured_outputs": {"regex": "[0-9]"}}, 400, "structured_outputs", "use a vLLM deployment"),
    ({"thinking_token_budget": -2}, 400, "thinking_token_budget", "from -1 to"),
    ({"logprobs": True}, 400, "logprobs", "Leave the field out"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, 400, "chat_template_kwargs", "may not set chat_template"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, 400, "chat_template_kwargs.enable_thinking", "true or false"),
]


@pytest.mark.parametrize(("fields", "status", "param", "says"), REFUSED_FIELDS)
def test_bad_fields_are_refused_by_name(chat: RunningWorker, fields: dict[str, Any], status: int, param: str | None, says: str) -> None:
    for streaming in (False, True) if "stream" not in fields else (False,):
        response = ask(chat, **{"stream": streaming, **fields})
        assert response.status_code == status
        assert error_of(response)["param"] == param
        assert says in error_of(response)["message"]


def test_a_long_prompt_is_context_length_exceeded(chat: RunningWorker) -> None:
    response = ask(chat, messages=[{"role": "user", "content": "x" * 5000}])
    assert error_of(response)["code"] == "context_length_exceeded"


def test_max_tokens_ends_where_the_context_does(chat: RunningWorker) -> None:
    usage = ask(chat, messages=[{"role": "user", "content": "q" * 2000}], max_tokens=4000).json()["usage"]
    assert usage["total_tokens"] == 2048


def test_bodies_that_are_not_json_objects_are_refused(chat: RunningWorker) -> None:
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}'):
        response = chat.client.post("/v1/chat/completions", content=body)
        assert response.status_code == 400
        assert error_of(response)["code"] == "invalid_json"
    response = chat.client.post("/v1/chat/completions", content=b" " * (33 * 1024 * 1024))
    assert response.status_code == 413


def test_unknown_paths_and_methods_have_the_same_error_shape(chat: RunningWorker) -> None:
    assert chat.client.get("/v1/nothing").status_code == 404
    assert error_of(chat.client.get("/v1/nothing"))
    assert chat.client.get("/v1/chat/completions").status_code == 405
    assert error_of(chat.client.get("/v1/chat/completions"))


def test_every_route_but_health_wants_the_key(chat: RunningWorker) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": chat.key}):
        for path in ("/v1/models", "/v1/chat/completions", "/nothing"):
            response = httpx.get(chat.base_url + path, headers=headers)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
    assert httpx.get(chat.base_url + "/health").status_code == 200


def test_the_official_sdk_reads_answers_and_streams(chat: RunningWorker) -> None:
    client = openai.OpenAI(base_url=f"{chat.base_url}/v1", api_key=chat.key, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=3, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.NotFoundError, match="serves 'tiny'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_stops_the_generation(chat: RunningWorker, streaming: bool) -> None:
    before = chat.health()["tokens_generated"]
    body = {"model": "tiny", "messages": HI, "stream": streaming, **ENDLESS}
    if streaming:
        with chat.client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            chat.client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.2))
    stopped = chat.wait_for(running=0)["tokens_generated"]
    assert stopped - before < (150 if streaming else 600)  # the impatient client waits 0.2 s
    assert chat.health()["tokens_generated"] == stopped
    assert ask(chat).status_code == 200


def test_the_queue_is_bounded_and_a_queued_client_that_leaves_frees_its_place(chat: RunningWorker) -> None:
    body = {"model": "tiny", "messages": HI, "stream": True, **ENDLESS}
    with chat.client.stream("POST", "/v1/chat/completions", json=body) as running:
        received = running.iter_lines()  # kept: httpx closes the connection with the iterator
        next(received)
        with socket.create_connection(("127.0.0.1", chat.port)) as waiting:
            waiting.sendall(raw_request(chat, body))
            chat.wait_for(running=1, queued=1)
            refused = ask(chat)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert "limit is 1" in error_of(refused)["message"]
        assert chat.wait_for(queued=0)["running"] == 1
    chat.wait_for(running=0)


def raw_request(chat: RunningWorker, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {chat.key}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def test_loading_shows_progress_and_refuses_work_and_sigterm_ends_a_running_stream(checkpoints: Path) -> None:
    with RunningWorker("chat_server", checkpoints / "chat") as worker:
        seen = worker.wait_ready()
        stages = list(dict.fromkeys(body["stage"] for body in seen[:-1]))
        assert stages[0].startswith("importing")
        progress = [body["progress"] for body in seen[:-1]]
        assert progress == sorted(progress)
        assert all(0 <= value <= 1 for value in progress)
        body = {"model": "tiny", "messages": HI, "stream": True, **ENDLESS}
        with worker.client.stream("POST", "/v1/chat/completions", json=body) as response:
            received = events(response)
            next(received)
            assert worker.terminate() == 0
            *_, failure, end = received
        assert failure["error"]["code"] == "shutting_down"
        assert end == "[DONE]"
        assert worker.left_behind() == ""


def test_requests_during_loading_are_refused(checkpoints: Path) -> None:
    with RunningWorker("chat_server", checkpoints / "chat") as worker:
        while True:
            try:
                health = worker.client.get("/health")
                break
            except httpx.TransportError:
                assert worker.process.poll() is None
        assert health.status_code == 503
        assert health.json()["status"] == "loading"
        response = ask(worker)
        assert response.status_code == 503
        assert error_of(response)["code"] == "model_loading"
        assert worker.terminate() == 0


def test_a_text_model_answers_and_refuses_images(checkpoints: Path) -> None:
    with RunningWorker("chat_server", checkpoints / "text") as worker:
        worker.wait_ready()
        assert ask(worker).json()["choices"][0]["message"]["role"] == "assistant"
        response = ask(worker, messages=picture(data_url(32, 32)))
        assert response.status_code == 400
        assert "reads text only" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (None, "", "neither a folder nor in the local Hugging Face cache"),
        ("notes.txt", "x", "has no config.json"),
        ("config.json", "{}", "has no *.safetensors file"),
        ("model.safetensors", "broken", ""),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_one_line_and_code_1(tmp_path: Path, file: str | None, content: str, says: str) -> None:
    folder = tmp_path / "checkpoint"
    if file:
        folder.mkdir()
        (folder / file).write_text(content)
        if file == "model.safetensors":
            (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5"}))
    with RunningWorker("chat_server", folder) as worker:
        assert worker.process.wait(60) == 1
        lines = worker.left_behind().splitlines()
        assert len(lines) == 1
        assert says in lines[0]
