"""Request bodies that stop on their way."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from gateway import body
from gateway.body import read_body
from gateway.errors import GatewayError
from tests.gateway.live import KEY, image_settings, live_gateway


class NothingYet:
    """A cycle whose request's body has not come with its head."""

    def whole_body(self, limit: int) -> None:
        return None


SCOPE: Scope = {"type": "http", "headers": [], "extensions": {"tandem.cycle": NothingYet()}}


class Arriving:
    """An ASGI receive: each part when `let` is set for it, and then nothing for ever, or the client's departure."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.waited = 0

    async def __call__(self) -> Message:
        await asyncio.sleep(0)  # as a part that has not come yet: it takes another turn of the loop
        self.waited += 1
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


def part(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_parts_that_take_their_time_are_one_body() -> None:
    assert await read_body(SCOPE, Arriving(part(b"ab"), part(b"c"), part(b"", more=False)), 10) == b"abc"


async def test_a_body_that_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PART_S", 0.01)
    arriving = Arriving(part(b"ab"))
    with pytest.raises(GatewayError, match=r"nothing more of it came within 0\.01 s") as caught:
        await read_body(SCOPE, arriving, 10)
    assert (caught.value.status, caught.value.code, arriving.waited) == (408, "request_timeout", 2)


async def test_a_client_that_leaves_in_the_middle_is_no_time_out() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(SCOPE, Arriving(part(b"ab"), {"type": "http.disconnect"}), 10)


async def test_being_cancelled_while_waiting_is_no_time_out_either() -> None:
    reading = asyncio.create_task(read_body(SCOPE, Arriving(), 10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/generations"])
async def test_the_client_is_told_408_and_the_connection_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PART_S", 0.05)
    async with live_gateway(image_settings()) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 100\r\n\r\n".encode())
        writer.write(b'{"model": ')
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")  # to its end: the gateway closes
        writer.close()
    lines = head.decode().lower().splitlines()
    assert lines[0].startswith("http/1.1 408")
    assert "connection: close" in lines
    error = json.loads(content)["error"]
    assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
    assert "send it again" in error["message"]
