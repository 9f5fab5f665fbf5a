"""Exchanges with a real server over real sockets: what comes back, what a failure is called, what is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

import adapters.endpoint as endpoint_module
import adapters.pool as pool_module
from adapters.base import ChatCall, Source, Timeouts
from adapters.endpoint import Endpoint
from adapters.errors import UpstreamError
from tests.scripted_upstream import Exchange, Request, Scenario, ScriptedUpstream, answering, chunk, completion, failing, scripted_upstream

BODY = b'{"model":"m","messages":[]}'
STREAM_BODY = b'{"model":"m","messages":[],"stream":true}'


def call_of(body: bytes) -> ChatCall:
    return ChatCall(body, json.loads(body), "req-1")


class Recorder:
    """A client that takes everything, or pauses its source after each write where `slow`."""

    def __init__(self, *, slow: bool = False) -> None:
        self.writes: list[bytes] = []
        self.source: Source | None = None
        self.slow = slow
        self.written = asyncio.Event()

    def write(self, frames: bytes, source: Source) -> None:
        self.writes.append(frames)
        self.written.set()
        self.source = source
        if self.slow:
            source.pause()

    @property
    def text(self) -> str:
        said = ""
        for frame in b"".join(self.writes).split(b"\n\n"):
            if frame.startswith(b"data: {"):
                said += json.loads(frame[6:])["choices"][0]["delta"].get("content") or ""
        return said


@asynccontextmanager
async def connected(
    scenario: Scenario, *, timeouts: Timeouts | None = None, key: str | None = "secret-key"
) -> AsyncIterator[tuple[ScriptedUpstream, Endpoint]]:
    async with scripted_upstream(scenario) as upstream:
        endpoint = Endpoint("up", upstream.base_url, key, timeouts or Timeouts(), {"X-Extra": "1"})
        try:
            yield upstream, endpoint
        finally:
            endpoint.close()


async def stream(endpoint: Endpoint, client: Recorder) -> None:
    await endpoint.stream("/chat/completions", STREAM_BODY, call_of(STREAM_BODY), client)


async def complete(endpoint: Endpoint) -> bytes:
    return await endpoint.complete("/chat/completions", BODY, call_of(BODY))


async def test_a_request_carries_key_headers_and_body_and_its_connection_is_reused() -> None:
    async with connected(answering("Hel", "lo")) as (upstream, endpoint):
        for _ in range(3):
            client = Recorder()
            await stream(endpoint, client)
            assert client.text == "Hello"
            assert json.loads(await complete(endpoint)) == completion("Hello")
        asked = upstream.asked[0]
        assert (asked.method, asked.path, asked.body) == ("POST", "/v1/chat/completions", STREAM_BODY)
        assert asked.headers["authorization"] == "Bearer secret-key"
        assert asked.headers["x-request-id"] == "req-1"
        assert asked.headers["x-extra"] == "1"
        assert asked.headers["content-type"] == "application/json"
        assert (upstream.connections, endpoint.pool.open_connections, endpoint.pool.idle_connections) == (1, 1, 1)


async def test_bytes_pass_before_the_next_ones_are_made() -> None:
    go_on = asyncio.Event()

    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await go_on.wait()
        await exchange.events(chunk("two", finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with connected(scenario) as (_, endpoint):
        client = Recorder()
        running = asyncio.create_task(stream(endpoint, client))
        await client.written.wait()
        assert client.text == "one"
        go_on.set()
        await running
        assert client.text == "onetwo"


async def test_a_reply_in_single_bytes_with_crlf_frames_and_early_hints() -> None:
    frames = b'data: {"choices":[{"delta":{"content":"h\xc3\xa4"}}]}\r\n\r\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n'
    reply = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"

    async def scenario(request: Request, exchange: Exchange) -> None:
        for byte in reply % len(frames) + frames:
            await exchange.raw(bytes([byte]))
            await asyncio.sleep(0)

    async with connected(scenario) as (_, endpoint):
        client = Recorder()
        await stream(endpoint, client)
        assert b"".join(client.writes) == frames + b"data: [DONE]\n\n"


async def test_a_reply_that_ends_with_its_connection_is_complete_and_the_connection_is_not_reused() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.head(200, content_type="application/json")
        await exchange.raw(json.dumps(completion("bye")).encode())
        exchange.cut()

    async with connected(scenario) as (upstream, endpoint):
        for _ in range(2):
            assert json.loads(await complete(endpoint))["choices"][0]["message"]["content"] == "bye"
        assert upstream.connections == 2
        assert endpoint.pool.idle_connections == 0


async def test_a_kept_connection_that_the_upstream_has_closed_is_replaced_unseen() -> None:
    closing = asyncio.Event()

    async def scenario(request: Request, exchange: Exchange) -> None:
        if closing.is_set() and len(asked) % 2:
            asked.append(request)
            exchange.cut()
            return
        asked.append(request)
        await exchange.json(200, completion("ok"))

    asked: list[Request] = []
    async with connected(scenario) as (upstream, endpoint):
        await complete(endpoint)
        closing.set()
        await complete(endpoint)  # sent on the kept connection, which closes without a byte
        assert (len(asked), upstream.connections) == (3, 2)


async def test_a_kept_connection_that_dies_late_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "STALE_S", 0.02)

    async def works_on_it_and_dies(request: Request, exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        exchange.cut()

    async with connected(answering("ok")) as (upstream, endpoint):
        await complete(endpoint)
        upstream.scenario = works_on_it_and_dies
        with pytest.raises(UpstreamError, match="before it answered"):
            await complete(endpoint)
        assert len(upstream.asked) == 2


async def test_a_connection_that_was_idle_for_long_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(answering("ok")) as (upstream, endpoint):
        await complete(endpoint)
        monkeypatch.setattr(pool_module, "MAX_IDLE_S", 0.01)
        await asyncio.sleep(0.02)
        await complete(endpoint)
        assert (upstream.connections, endpoint.pool.open_connections) == (2, 1)


async def test_a_fresh_connection_that_closes_is_not_tried_again() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        exchange.cut()

    async with connected(scenario) as (upstream, endpoint):
        with pytest.raises(UpstreamError) as caught:
            await complete(endpoint)
        assert (caught.value.status, caught.value.code) == (502, "upstream_disconnected")
        assert len(upstream.asked) == 1


@pytest.mark.parametrize("started", [False, True])
async def test_cancelling_closes_the_upstream_connection(started: bool) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        if started:
            await exchange.start_stream()
            await exchange.events(chunk("one"))
        await exchange.until_left()

    async with connected(scenario) as (upstream, endpoint):
        client = Recorder()
        running = asyncio.create_task(stream(endpoint, client))
        while not upstream.asked or (started and not client.writes):
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(0.1):
            while upstream.open_connections:
                await asyncio.sleep(0.001)
        assert endpoint.pool.open_connections == 0


async def test_a_slow_client_stops_the_reading_and_nothing_is_lost() -> None:
    text = "x" * 10_000
    sent = 0

    async def scenario(request: Request, exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_stream()
        for _ in range(2000):
            await exchange.events(chunk(text))
            sent += 1
        await exchange.events(chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with connected(scenario, timeouts=Timeouts(idle_s=0.05)) as (_, endpoint):
        client = Recorder(slow=True)
        running = asyncio.create_task(stream(endpoint, client))
        await client.written.wait()
        await asyncio.sleep(0.3)  # longer than the idle limit: a paused upstream is not a silent one
        assert sent < 1000, "the upstream was held back by its full socket"
        held = len(b"".join(client.writes))
        assert held < 2_000_000
        client.slow = False
        assert client.source is not None
        client.source.resume()
        await running
        assert len(client.text) == 2000 * len(text)


@pytest.mark.parametrize(
    ("limits", "said", "message"),
    [
        (Timeouts(first_token_s=0.05), 0, "no first token within 0.05 s"),
        (Timeouts(idle_s=0.05), 1, "nothing more came within 0.05 s"),
        (Timeouts(total_s=0.05), 1, "the answer was not complete within 0.05 s"),
    ],
)
async def test_time_outs(limits: Timeouts, said: int, message: str) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(*[chunk("one")] * said)
        while limits.idle_s > 1:  # comments prove that it lives, but they are no token
            await exchange.chunk(b": OPENROUTER PROCESSING\n\n")
            await asyncio.sleep(0.01)
        await exchange.until_left()

    async with connected(scenario, timeouts=limits) as (_, endpoint):
        with pytest.raises(UpstreamError, match=message) as caught:
            await stream(endpoint, Recorder())
        assert caught.value.status == 504
        assert endpoint.pool.open_connections == 0


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = Endpoint("up", f"http://127.0.0.1:{free.getsockname()[1]}/v1", None, Timeouts())
        with pytest.raises(UpstreamError, match=r"upstream 'up' cannot be reached at http://127\.0\.0\.1") as caught:
            await complete(endpoint)
        assert caught.value.status == 502


@pytest.mark.parametrize(
    ("status", "document", "headers", "expected", "code", "fallback"),
    [
        (400, {"error": {"message": "bad", "type": "invalid_request_error", "param": "n", "code": "x"}}, {}, 400, "x", False),
        (400, {"object": "error", "message": "old vLLM", "type": "BadRequestError", "code": 400}, {}, 400, "upstream_http_400", False),
        (401, {"error": "Unauthorized"}, {}, 502, "upstream_auth_failed", True),
        (402, {"error": {"code": 402, "message": "no credits"}}, {}, 502, "upstream_payment_required", True),
        (403, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["x"]}}}, {}, 403, "content_policy_violation", False),
        (403, {"error": {"message": "no"}}, {}, 502, "upstream_auth_failed", True),
        (404, {"detail": "Not Found"}, {}, 404, "upstream_http_404", True),
        (422, {"detail": [{"loc": ["body"], "msg": "nope"}]}, {}, 422, "upstream_http_422", False),
        (429, {"error": {"message": "slow", "code": "rate_limit_exceeded"}}, {"retry_after": "7"}, 429, "rate_limit_exceeded", True),
        (503, b"<html>busy</html>", {"retry_after_ms": "250"}, 503, "upstream_http_503", True),
        (500, {"error": None, "detail": "the detail"}, {}, 500, "upstream_http_500", True),
        (999, {"message": "no such class"}, {}, 502, "upstream_http_502", True),
        (307, {"message": "moved"}, {"location": "/x"}, 502, "upstream_http_502", True),
    ],
)
async def test_an_upstream_status_becomes_the_right_error(
    status: int, document: object, headers: dict[str, str], expected: int, code: str, fallback: bool
) -> None:
    async with connected(failing(status, document, **headers)) as (_, endpoint):
        for asking in (complete(endpoint), stream(endpoint, Recorder())):
            with pytest.raises(UpstreamError) as caught:
                await asking
            error = caught.value
            assert (error.status, error.code, error.fallback) == (expected, code, fallback)
            kept = {name.decode().replace("-", "_"): value.decode() for name, value in error.headers.items()}
            if expected == 502 and status < 500 and status != 307:
                assert kept.pop("x_should_retry") == "false"
            assert kept == {name: value for name, value in headers.items() if name.startswith("retry")}
        assert endpoint.pool.open_connections == 0 or endpoint.pool.idle_connections == endpoint.pool.open_connections


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"error": {"code": 503, "message": "no provider"}}, 503, "no provider"),
        ({"object": "chat.completion"}, 502, "application/json where an event stream was asked for"),
    ],
)
async def test_json_where_a_stream_was_asked_for_is_read_as_the_error_it_is(document: object, status: int, message: str) -> None:
    async with connected(failing(200, document)) as (_, endpoint):
        with pytest.raises(UpstreamError, match=message) as caught:
            await stream(endpoint, Recorder())
        assert caught.value.status == status


async def test_bytes_that_are_not_http() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.raw(b"SSH-2.0-OpenSSH_9.2\r\n")

    async with connected(scenario) as (_, endpoint):
        with pytest.raises(UpstreamError, match="bytes that are not HTTP"):
            await complete(endpoint)
        assert endpoint.pool.open_connections == 0


@pytest.mark.parametrize("more", [b"HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\nevil", b"HTTP/1.1 2", b"junk\r\n\r\n"])
async def test_what_follows_a_complete_reply_is_not_part_of_it_and_ends_the_connection(more: bytes) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        body = json.dumps(completion("good")).encode()
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s%s" % (len(body), body, more))

    async with connected(scenario) as (_, endpoint):
        assert json.loads(await complete(endpoint)) == completion("good")
        assert endpoint.pool.open_connections == 0


async def test_what_came_before_bytes_that_are_not_http_is_passed_on() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        frame = b"data: %s\n\n" % json.dumps(chunk("one")).encode()
        await exchange.raw(b"%x\r\n%s\r\nno length\r\n" % (len(frame), frame))

    async with connected(scenario) as (_, endpoint):
        client = Recorder()
        with pytest.raises(UpstreamError, match="bytes that are not HTTP"):
            await stream(endpoint, client)
        assert client.text == "one"


async def test_a_connection_with_an_unread_request_is_not_used_again() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        closed.append(writer)

    closed: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    endpoint = Endpoint("up", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", None, Timeouts(total_s=2))
    for _ in range(2):
        with pytest.raises(UpstreamError, match="HTTP 413"):
            await endpoint.complete("/chat/completions", b"x" * 20_000_000, call_of(BODY))
    assert endpoint.pool.open_connections == 0
    for writer in closed:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_closing_the_pool_ends_an_exchange_that_a_slow_client_holds_back() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await exchange.until_left()

    async with connected(scenario) as (_, endpoint):
        client = Recorder(slow=True)
        running = asyncio.create_task(stream(endpoint, client))
        await client.written.wait()
        endpoint.close()
        with pytest.raises(UpstreamError, match="closed the connection"):
            async with asyncio.timeout(1):
                await running


async def test_a_kept_connection_keeps_nothing_of_its_last_exchange() -> None:
    async with connected(answering("Hello")) as (_, endpoint):
        client = Recorder()
        gone = weakref.ref(client)
        await stream(endpoint, client)
        del client
        gc.collect()
        assert (gone(), endpoint.pool.idle_connections) == (None, 1)


async def test_an_answer_is_complete_with_done_however_its_connection_ends() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("Hello"), chunk(finish="stop"), "[DONE]")
        exchange.cut()

    async with connected(scenario) as (_, endpoint):
        client = Recorder()
        await stream(endpoint, client)
        assert client.text == "Hello"
        assert endpoint.pool.open_connections == 0


async def test_a_compressed_answer_is_named_as_such() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.json(200, b"\x1f\x8b\x08", content_encoding="gzip")

    async with connected(scenario) as (_, endpoint):
        with pytest.raises(UpstreamError, match="content-encoding gzip"):
            await complete(endpoint)


async def test_an_error_message_never_shows_the_key() -> None:
    async with connected(failing(500, {"error": {"message": "bad key secret-key"}})) as (_, endpoint):
        with pytest.raises(UpstreamError, match=r"bad key \*\*\*"):
            await complete(endpoint)


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_tls)
    upstream = ScriptedUpstream(answering("safe"))
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=server_tls)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    try:
        with pytest.raises(UpstreamError, match="certificate verify failed"):
            await complete(Endpoint("up", url, None, Timeouts()))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        endpoint = Endpoint("up", url, None, Timeouts())
        client = Recorder()
        await stream(endpoint, client)
        assert client.text == "safe"
        endpoint.close()
        await asyncio.sleep(0)
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("url", ["ftp://x/v1", "localhost:8000", "http://"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Endpoint("up", url, None, Timeouts())
