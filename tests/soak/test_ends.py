"""How things end that end badly: the upstream by kill -9, the gateway by SIGTERM, a request by a key that has no place left."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.soak.client import Answer, Connection
from tests.soak.size import LIMIT_S, sized
from tests.soak.stage import FEW, Stage, until
from tests.soak.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]

STREAMS = sized(100, 20)
WHOLE = 5
RUNNING = "pace_us=10000 tokens=1000000"
FOREVER = "wait_us=3600000000"


async def running(stage: Stage) -> tuple[list[asyncio.Future[Answer]], list[asyncio.Future[Answer]], list[Connection]]:
    """STREAMS streams that have begun, WHOLE answers that are waited for; their connections."""
    connections = [await stage.door.connect() for _ in range(STREAMS + WHOLE)]
    streams = [connection.send(stage.door.chat(RUNNING)) for connection in connections[:STREAMS]]
    whole = [connection.send(stage.door.chat(FOREVER, stream=False)) for connection in connections[STREAMS:]]
    for connection in connections[:STREAMS]:
        await connection.begun.wait()
    while (await stage.upstream.json("/stats"))["running"] < STREAMS + WHOLE:
        await asyncio.sleep(0.01)
    return streams, whole, connections


def check_streams(answers: list[Answer], code: str) -> None:
    """Each has told its tokens in order, then the error, then HTTP's end."""
    for answer in answers:
        assert (answer.status, answer.whole) == (200, True)
        assert answer.numbers == list(range(len(answer.numbers)))
        assert answer.numbers
        assert answer.error["code"] == code
        assert not answer.done


async def test_an_upstream_that_is_killed_ends_its_streams_with_an_error(own_stage: Stage, table: Table) -> None:
    streams, whole, connections = await running(own_stage)
    own_stage.upstream_process.kill()
    check_streams(await asyncio.gather(*streams), "upstream_disconnected")
    for answer in await asyncio.gather(*whole):
        assert (answer.status, answer.error["code"]) == (502, "upstream_disconnected")
    refused = await connections[0].send(own_stage.door.chat("tokens=1"))  # the client's connection is as good as before
    assert (refused.status, refused.error["code"]) == (502, "upstream_unreachable")
    for connection in connections:
        connection.leave()
    own_stage.upstream_process.wait()
    await own_stage.quiet()
    census = await own_stage.census()
    assert census.upstream_sockets == {}
    assert own_stage.rows() == {"failed": STREAMS + WHOLE + 1}
    table.add("upstream killed", f"{STREAMS} streams ended with an error event, {WHOLE} waiting answers with 502, 0 in flight")


async def test_a_gateway_that_is_told_to_stop_refuses_the_new_and_ends_what_runs_with_an_error(own_stage: Stage, table: Table) -> None:
    streams, whole, _ = await running(own_stage)
    own_stage.gateway.send_signal(signal.SIGTERM)
    assert await _refuses(own_stage)
    assert not any(stream.done() for stream in streams)  # their time of grace is not over
    check_streams(await asyncio.gather(*streams), "shutting_down")
    for answer in await asyncio.gather(*whole):
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"]
    await until(lambda: own_stage.gateway.poll() is not None)
    assert own_stage.gateway.poll() == 0
    assert own_stage.rows() == {"failed": STREAMS + WHOLE}
    stats = await own_stage.upstream.json("/stats")
    assert stats["running"] == 0
    table.add("gateway told to stop", f"new connections refused, {STREAMS} streams ended with an error event, {WHOLE} answers with 503")


async def _refuses(stage: Stage) -> bool:
    """True once a new connection is refused."""
    while True:
        try:
            connection = await stage.door.connect()
        except ConnectionRefusedError:
            return True
        connection.leave()
        await asyncio.sleep(0.01)


async def test_a_key_without_a_place_left_is_told_at_once(stage: Stage, table: Table) -> None:
    holding = [await stage.few.connect() for _ in range(FEW)]
    streams = [connection.send(stage.few.chat(RUNNING)) for connection in holding]
    for connection in holding:
        await connection.begun.wait()
    asked_before = (await stage.upstream.json("/stats"))["requests"]
    one_more = await stage.few.connect()
    refused = await one_more.send(stage.few.chat("tokens=1"))
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
    assert refused.headers["retry-after"]
    assert not any(stream.done() for stream in streams)  # it has not waited for one of them
    assert (await stage.upstream.json("/stats"))["requests"] == asked_before
    for connection in holding:
        connection.leave()
    await stage.quiet()
    assert (await one_more.send(stage.few.chat("tokens=1"))).done
    one_more.leave()
    table.add("no place left", f"{FEW} of {FEW} places taken: 429 while they run, the upstream not asked; free again when they have left")
