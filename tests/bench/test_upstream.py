"""upstream.c, asked by a client that is not ours."""

from __future__ import annotations

import json
import socket
import time
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


def test_an_unpaced_stream_is_made_as_there_is_room_to_send_it(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=question("tokens=100000000", stream=True)):
        while (stats := client.get("/stats").json())["held_back"] == 0:
            pass
        assert stats["running"] == 1
        assert stats["tokens"] < 1_000_000
    while client.get("/stats").json()["held_back"]:
        pass
    whole = frames(client.post(CHAT, json=question("tokens=20000", stream=True)).text)
    assert len(whole) == 20_002


def test_a_stream_may_be_cut(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(CHAT, json=question("tokens=9 cut=2", stream=True))
    stats = client.get("/stats").json()
    assert (stats["tokens"], stats["streams_finished"], stats["closed_early"], stats["running"]) == (2, 0, 0, 0)


def test_it_refuses_where_it_is_asked_to(client: httpx.Client) -> None:
    reply = client.post(CHAT, json=question("status=429"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, 429)


@pytest.mark.parametrize("words", ["wait_us=20000", "wait_us=20000 half=1"])
def test_an_answer_may_come_late_and_half_of_it_before(client: httpx.Client, words: str) -> None:
    began = time.monotonic()
    reply = client.post(CHAT, json=question(words))
    assert time.monotonic() - began >= 0.02
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    assert len(frames(client.post(CHAT, json=question("wait_us=1000 tokens=3", stream=True)).text)) == 5
    assert client.get("/stats").json()["running"] == 0


def test_who_leaves_is_told_once_by_its_tag_and_time(client: httpx.Client) -> None:
    before = time.monotonic_ns()
    for tag, words in ((1, "wait_us=60000000"), (2, "wait_us=60000000 half=1")):
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=question(f"{words} tag={tag}"), timeout=0.2)
    while client.get("/stats").json()["closed_early"] < 2:
        pass
    after = time.monotonic_ns()
    left = client.get("/left").json()
    assert [tag for tag, _ in left] == [1, 2]
    assert before < left[0][1] < left[1][1] < after
    assert client.get("/left").json() == []


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
