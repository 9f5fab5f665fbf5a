"""upstream.c, asked by a client that is not ours."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.chat.programs import Programs
from tests.bench.running import needs_compiler, upstream

pytestmark = [needs_compiler, pytest.mark.slow]

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(built: Programs, tmp_path: Path) -> Iterator[httpx.Client]:
    with upstream(built, tmp_path) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
        yield http


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], **more}


def frames(text: str) -> list[Any]:
    """The documents of a stream, without its [DONE], which must be last."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_whole_answer_is_a_chat_completion(client: httpx.Client) -> None:
    reply = client.post(CHAT, json=question("Hello")).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"]


def test_a_stream_has_a_role_its_tokens_in_order_a_reason_and_an_end(client: httpx.Client) -> None:
    first, *tokens, last = frames(client.post(CHAT, json=question("pace_us=500 tokens=7", stream=True)).text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    texts = [token["choices"][0]["delta"]["content"].split(":") for token in tokens]
    assert [int(sequence) for sequence, _ in texts] == list(range(7))
    times = [int(time) for _, time in texts]
    assert times == sorted(times)
    assert times[-1] - times[0] >= 6 * 450_000  # paced: never earlier than due, but for the first one's own making
    assert last["choices"][0]["finish_reason"] == "stop"


def test_usage_comes_only_where_it_is_asked_for(client: httpx.Client) -> None:
    *_, last = frames(client.post(CHAT, json=question("tokens=3", stream=True, stream_options={"include_usage": True})).text)
    assert last["usage"]["completion_tokens"] == 3
    assert not any("usage" in frame for frame in frames(client.post(CHAT, json=question("tokens=3", stream=True)).text))


def test_a_client_that_leaves_is_counted(client: httpx.Client) -> None:
    client.post(CHAT, json=question("pace_us=100 tokens=3", stream=True))
    assert client.get("/stats").json()["closed_early"] == 0
    with client.stream("POST", CHAT, json=question("pace_us=1000 tokens=1000000", stream=True)) as reply:
        next(reply.iter_lines())
    while (stats := client.get("/stats").json())["closed_early"] == 0:
        pass
    assert (stats["streams_started"], stats["streams_finished"], stats["closed_early"]) == (2, 1, 1)


def test_a_request_may_come_in_pieces_and_two_in_one(client: httpx.Client) -> None:
    body = json.dumps(question("Hello")).encode()
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as connection:
        for start in range(0, len(request), 40):
            connection.sendall(request[start : start + 40])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(request + request)
        received = b""
        while received.count(b"chat.completion") < 2:
            piece = connection.recv(65536)
            assert piece
            received += piece


def test_what_it_cannot_answer_it_refuses(client: httpx.Client) -> None:
    assert client.get("/elsewhere").status_code == 404
    assert client.post(CHAT, content=iter([b"{}"])).status_code == 411
