"""Tens of thousands of requests, good, abandoned and failing, all mixed: afterwards nothing of them is left, and each was written down."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.soak.client import Answer, Closed, Connection, Door
from tests.soak.size import FULL, LIMIT_S, sized
from tests.soak.stage import Stage
from tests.soak.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]

ROUNDS = sized(20, 1)
STREAMED, ABORTED, FAILING = 2_500, 500, 250  # in each round
WIDTH = 24  # connections for each kind
TOKENS = 16
WARM_UP = 0.2  # of the samples of memory
SLOPE = 1e6  # bytes for 10,000 requests
PER_REQUEST = ("ClientStream", "Departure", "StreamedReply", "WholeReply", "ChatCall", "Stepped", "Attempts", "_Exchange", "Admitted")
A_BATCH = 512  # records that the writers of rows and of lines may still have in hand

Load = Callable[[Door, random.Random], Awaitable[str]]


class Streaming:
    """One stream after the other on one connection. Each token must come, in order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __call__(self, door: Door, rng: random.Random) -> str:
        answer = await self._connection.send(door.chat(f"tokens={TOKENS}"))
        assert answer.done, answer
        assert answer.numbers == list(range(TOKENS))
        return "streamed"


class Leaving:
    """A client that leaves: streaming or not, before or after the first bytes."""

    def __init__(self) -> None:
        self._kinds = itertools.cycle(
            [
                ("pace_us=2000 tokens=1000000", True),
                ("wait_us=60000000", True),
                ("wait_us=60000000", False),
                ("wait_us=60000000 half=1", False),
            ]
        )

    async def __call__(self, door: Door, rng: random.Random) -> str:
        words, stream = next(self._kinds)
        connection = await door.connect()
        connection.send(door.chat(words, stream=stream))
        if "pace_us" in words:
            await connection.begun.wait()
        else:
            await asyncio.sleep(rng.random() * 0.02)  # anywhere on the way to the upstream or behind it
        connection.leave()
        return "aborted"


class Failing:
    """Each way in which a request fails, and what the client must hear of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._kinds = itertools.cycle([*_FAILURES, "cut"])

    async def __call__(self, door: Door, rng: random.Random) -> str:
        kind = next(self._kinds)
        if kind == "cut":
            answer = await self._connection.send(door.chat("tokens=9 cut=3"))
            assert (answer.status, answer.whole, answer.numbers) == (200, True, [0, 1, 2])
            assert answer.error["code"] == "upstream_disconnected"
        else:
            request, status = _FAILURES[kind](door)
            answer = await self._connection.send(request)
            assert answer.status == status, (kind, answer)
            assert answer.error["message"]
        return "failing"


_FAILURES: dict[str, Callable[[Door], tuple[bytes, int]]] = {
    "500": lambda door: (door.chat("status=500"), 500),
    "429": lambda door: (door.chat("status=429", stream=False), 429),
    "400": lambda door: (door.chat("status=400"), 400),
    "unreachable": lambda door: (door.chat("tokens=1", model="nobody"), 502),
    "unknown model": lambda door: (door.chat("tokens=1", model="no-such-model"), 404),
    "not JSON": lambda door: (door.post(b'{"model":'), 400),
    "wrong key": lambda door: (Door(door.port, "sk-wrong").chat("tokens=1"), 401),
}


async def repeat(door: Door, load: Load, numbers: itertools.count[int], count: int, seed: int) -> Counter[str]:
    """Take part in `count` requests that others take part in too."""
    rng, made = random.Random(seed), Counter[str]()
    while next(numbers) < count:
        made[await load(door, rng)] += 1
    return made


async def one_round(door: Door, share: float = 1.0) -> Counter[str]:
    """All kinds at the same time, each on WIDTH connections, which are closed at the end."""
    connections = [await door.connect() for _ in range(2 * WIDTH)]
    loads: list[tuple[int, list[Load]]] = [
        (STREAMED, [Streaming(connection) for connection in connections[:WIDTH]]),
        (ABORTED, [Leaving()] * WIDTH),
        (FAILING, [Failing(connection) for connection in connections[WIDTH:]]),
    ]
    parts = []
    for count, workers in loads:
        numbers = itertools.count()
        parts += [repeat(door, load, numbers, int(count * share), seed) for seed, load in enumerate(workers)]
    made = sum(await asyncio.gather(*parts), Counter[str]())
    for connection in connections:
        connection.leave()
    return made


def slope(samples: list[tuple[int, int]]) -> float:
    """Bytes for each request, by least squares. samples: (requests so far, bytes)."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / sum((x - mean_x) ** 2 for x, _ in samples)


def test_the_slope_is_the_growth_for_each_request() -> None:
    assert slope([(0, 5_000), (10, 5_030), (20, 5_060)]) == pytest.approx(3)


async def test_nothing_is_left_of_any_request_and_each_has_its_row(stage: Stage, table: Table) -> None:
    await stage.quiet()
    rows_before, lines_before = stage.rows(), stage.lines()
    made = await one_round(stage.door, 0.2)
    await stage.quiet()
    before = await stage.census()
    samples: list[tuple[int, int]] = []
    for _ in range(ROUNDS):
        made += await one_round(stage.door)
        samples.append((made.total(), stage.rss()))
    await stage.quiet()
    after = await stage.census()

    assert await stage.reading("tandem_requests_in_flight") == 0
    assert await stage.reading("tandem_backlog_dropped_total") == 0
    outcomes = {outcome: count - rows_before.get(outcome, 0) for outcome, count in stage.rows().items()}
    assert sum(outcomes.values()) == made.total()
    assert outcomes["ok"] == made["streamed"]
    assert outcomes["client_left"] == made["aborted"]
    assert outcomes["failed"] == made["failing"]
    assert stage.lines() - lines_before == made.total()

    left = {name: after.objects[name] for name in PER_REQUEST if after.objects.get(name)}
    assert left == {}
    assert after.objects.get("RequestRecord", 0) <= A_BATCH
    assert (after.tasks, after.threads) == (before.tasks, before.threads)
    assert after.client_sockets == {}  # and those to the upstream are idle: it has nothing to answer
    assert set(after.upstream_sockets) <= {"ESTABLISHED"}
    assert after.files - sum(after.upstream_sockets.values()) == before.files - sum(before.upstream_sockets.values())

    kept = samples[int(len(samples) * WARM_UP) :]
    grows = slope(kept) * 10_000 if len(kept) > 2 else None
    table.add("soak: requests", ", ".join(f"{count:,} {kind}" for kind, count in made.items()))
    table.add("soak: memory", f"{stage.rss() / 1e6:.1f} MB" + (f", {grows / 1e6:+.3f} MB for 10,000 requests" if grows is not None else ""))
    table.add("soak: left behind", f"0 in flight, {after.tasks} tasks, {after.threads} threads, {after.files} files as before")
    table.add("soak: rows", f"{sum(outcomes.values()):,} written of {made.total():,}, 0 dropped")
    if FULL:
        assert grows is not None
        assert grows < SLOPE


async def test_an_answer_that_is_cut_is_noticed(stage: Stage) -> None:
    """The client's own honesty: a stream that ends without HTTP's end is no answer."""
    straight = await stage.upstream.connect()
    with pytest.raises(Closed):
        await straight.send(stage.upstream.chat("tokens=9 cut=3"))
    answer: Answer = straight.answer
    assert not answer.done
    straight.leave()
