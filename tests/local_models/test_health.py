from __future__ import annotations

import asyncio
import socket

import pytest

from local_models.health import ANSWER_LIMIT, SILENT, Health, ask_health, parse_answer
from local_models.process import free_port


def answer(status: int, body: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("raw", "health"),
    [
        (answer(200, '{"status": "ready"}'), Health(200)),
        (answer(200), Health(200)),
        (answer(200, "ok"), Health(200)),
        (answer(204), Health(204)),
        (answer(503, '{"status": "loading", "progress": 0.4, "stage": "reading weights"}'), Health(503, 0.4, "reading weights")),
        (answer(503, '{"progress": 7, "stage": null}'), Health(503, 1.0)),
        (answer(503, '{"progress": -1}'), Health(503, 0.0)),
        (answer(503, '{"progress": "half", "stage": 3}'), Health(503)),
        (answer(503, '{"progress": true}'), Health(503)),
        (answer(503, '{"progress": NaN}'), Health(503)),
        (answer(503, "[1]"), Health(503)),
        (answer(503, '{"stage": "' + "x" * 500 + '"}'), Health(503, None, "x" * 200)),
        (answer(500, "\xff"), Health(500)),
        (b"HTTP/1.1 503 X\r\n\r\n\xff\xfe", Health(503)),
        (b"", SILENT),
        (b"HTTP/1.1", SILENT),
        (b"HTTP/1.1 abc\r\n\r\n", SILENT),
        (b"SSH-2.0-OpenSSH 200\r\n", SILENT),
    ],
)
def test_an_answer_is_read_with_care(raw: bytes, health: Health) -> None:
    assert parse_answer(raw) == health


@pytest.mark.parametrize(("status", "ready"), [(200, True), (204, True), (301, False), (404, False), (503, False), (None, False)])
def test_only_success_is_ready(status: int | None, ready: bool) -> None:
    assert Health(status).is_ready is ready


async def test_nobody_there_is_silence() -> None:
    assert await ask_health("127.0.0.1", free_port(), "/health", timeout_s=5) == SILENT


async def test_a_server_that_takes_the_connection_and_says_nothing_is_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await ask_health("127.0.0.1", server.getsockname()[1], "/health", timeout_s=0.05) == SILENT


async def test_an_endless_answer_is_cut_off() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readline()) == b"GET /_stcore/health HTTP/1.0\r\n"
        try:
            writer.write(answer(200))
            while True:
                writer.write(b"x" * ANSWER_LIMIT)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await ask_health("127.0.0.1", port, "/_stcore/health", timeout_s=10)).status == 200
