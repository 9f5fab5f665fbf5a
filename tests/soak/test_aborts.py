"""A client that leaves stops its upstream within 100 ms, streaming or not, before and after the first token. The upstream measures."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.soak.client import Connection, Door
from tests.soak.size import FULL, LIMIT_S, sized
from tests.soak.stage import Stage
from tests.soak.table import Table, spread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]

TRIES = sized(250, 15)  # of each kind
WITHIN_MS = 100
FOREVER = "wait_us=3600000000"
KINDS = {
    "a stream, before its first token": (FOREVER, True),
    "a stream, after its first token": ("pace_us=20000 tokens=1000000", True),
    "a whole answer, before its first byte": (FOREVER, False),
    "a whole answer, half-way": (f"{FOREVER} half=1", False),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_upstream_sees_every_client_leave(stage: Stage, table: Table, kind: str) -> None:
    words, stream = KINDS[kind]
    await stage.upstream.json("/left")
    rng, left_ns = random.Random(kind), dict[int, int]()
    for tag in range(1, TRIES + 1):
        connection = await stage.door.connect()
        connection.send(stage.door.chat(f"{words} tag={tag}", stream=stream))
        await _until_running(stage.upstream, connection, streams_tokens="pace_us" in words)
        await asyncio.sleep(rng.random() * 0.01)
        left_ns[tag] = time.monotonic_ns()
        connection.leave()
        await _until_running(stage.upstream, None)
    seen_ns = dict(await stage.upstream.json("/left"))
    assert seen_ns.keys() == left_ns.keys()
    after_ms = [(seen_ns[tag] - at_ns) / 1e6 for tag, at_ns in left_ns.items()]
    in_time = sum(delay <= WITHIN_MS for delay in after_ms)
    table.add(f"abort: {kind}", f"{len(seen_ns)} of {TRIES} seen, {in_time} within {WITHIN_MS} ms, {spread(after_ms)}")
    await stage.quiet()
    if FULL:
        assert in_time == TRIES


async def _until_running(upstream: Door, connection: Connection | None, *, streams_tokens: bool = False) -> None:
    """The upstream works on this client's request, and on nothing else; without a client: on nothing."""
    if connection is not None and streams_tokens:
        await connection.begun.wait()
    deadline = time.monotonic() + 60
    while (await upstream.json("/stats"))["running"] != (0 if connection is None else 1):
        assert time.monotonic() < deadline, "the upstream never saw it"
