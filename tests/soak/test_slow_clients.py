"""Clients that read 1 kB a second hold back their own upstreams, and nobody else notices: neither the quick ones nor the memory."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from tests.soak.client import Door
from tests.soak.size import LIMIT_S, sized
from tests.soak.stage import Stage, until
from tests.soak.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]

SLOW, QUICK = sized(50, 5), sized(200, 20)
ROUNDS = sized(40, 5)  # streams of each quick client
TOKENS = 200
ENDLESS = 100_000_000  # tokens: no upstream gets that far unless nobody holds it back
MB = 1_000_000
EACH_MAY_COST = MB  # bytes of the gateway's memory for a slow client: what was read before the reading stopped
EACH_IS_MADE = 5_000  # tokens made meanwhile: what a slow client has read, and once more what the kernel lets through at a time
NOISE = 8 * MB  # by which the memory goes up and down while the quick ones are served
_NUMBER = re.compile(rb'"content":"(\d+):\d+ "')


class SlowClient:
    """Asks for a stream without an end and reads of it as slowly as it says."""

    def __init__(self, door: Door) -> None:
        self._socket: socket.socket = door.small_socket()
        self._request = door.chat(f"tokens={ENDLESS}")
        self.received = b""

    async def read_on(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, self._request)
        while True:
            self.received += await loop.sock_recv(self._socket, 256)
            await asyncio.sleep(0.25)

    def close(self) -> None:
        self._socket.close()


async def quick(door: Door) -> int:
    """Streams one after the other; how many tokens came, all of them and in order."""
    connection = await door.connect()
    for _ in range(ROUNDS):
        answer = await connection.send(door.chat(f"pace_us=1000 tokens={TOKENS}"))
        assert answer.done
        assert answer.numbers == list(range(TOKENS))
    connection.leave()
    return ROUNDS * TOKENS


async def test_a_slow_client_holds_back_its_own_upstream_only(stage: Stage, table: Table) -> None:
    await asyncio.gather(*(quick(stage.door) for _ in range(QUICK)))  # what the quick ones cost in memory is there before
    await stage.quiet()
    rss_before = stage.rss()
    slow = [SlowClient(stage.door) for _ in range(SLOW)]
    reading = [asyncio.create_task(client.read_on()) for client in slow]
    try:
        await _until_held_back(stage, SLOW)
        rss_begun, made_before = stage.rss(), (await stage.upstream.json("/stats"))["tokens"]
        tokens = sum(await asyncio.gather(*(quick(stage.door) for _ in range(QUICK))))
        stats = await stage.upstream.json("/stats")
        rss_end = stage.rss()
    finally:
        for task in reading:
            task.cancel()
        ended = await asyncio.gather(*reading, return_exceptions=True)
        for client in slow:
            client.close()
    assert all(isinstance(how, asyncio.CancelledError) for how in ended), ended  # they were reading until the end
    assert stats["held_back"] == SLOW
    held = [[int(number) for number in _NUMBER.findall(client.received)] for client in slow]
    assert all(numbers == list(range(len(numbers))) and numbers for numbers in held)
    made_for_slow = stats["tokens"] - made_before - tokens
    assert rss_begun - rss_before < SLOW * EACH_MAY_COST + NOISE
    assert rss_end - rss_begun < NOISE
    assert made_for_slow < SLOW * EACH_IS_MADE
    await stage.quiet()
    table.add("slow clients", f"{SLOW} at 1 kB/s beside {QUICK}: {tokens:,} tokens of {QUICK * ROUNDS * TOKENS:,} came to these, in order")
    table.add("slow clients: upstreams", f"{stats['held_back']} of {SLOW} held back, {made_for_slow:,} tokens made for them meanwhile")
    table.add(
        "slow clients: memory",
        f"{(rss_begun - rss_before) / MB:+.1f} MB when they came, {(rss_end - rss_begun) / MB:+.1f} MB while they were slow",
    )


async def _until_held_back(stage: Stage, count: int) -> None:
    """Return when the upstream waits for so many clients, and goes on doing so."""
    held = 0

    async def ask() -> None:
        nonlocal held
        while held < 5:
            held = held + 1 if (await stage.upstream.json("/stats"))["held_back"] == count else 0
            await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask())
    await until(asking.done)
    await asking
