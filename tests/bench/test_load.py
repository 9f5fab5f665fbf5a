"""load.c against an upstream whose every byte is known: what it counts is what was there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench.chat.programs import Programs
from bench.chat.results import Streams, read_requests, read_streams
from tests.bench.running import needs_compiler, run_load
from tests.scripted_upstream import Exchange, Request, Scenario, answering, chunk, failing, scripted_upstream

pytestmark = [needs_compiler, pytest.mark.slow]


def token(sequence: int) -> str:
    """As upstream.c writes it, made a second after the clock began."""
    return f"{sequence}:1000000000 "


async def streams(built: Programs, scenario: Scenario, tokens: int, **options: Any) -> Streams:
    async with scripted_upstream(scenario) as upstream:
        options = {"connections": 1, "pace_us": 1, "tokens": tokens, "ramp_ms": 0, **options}
        return read_streams(await asyncio.to_thread(run_load, built, "streams", upstream.port, **options))


async def test_a_whole_stream_is_counted_token_by_token(built: Programs) -> None:
    run = await streams(built, answering(*(token(number) for number in range(5))), 5, connections=3)
    assert (run.begun, run.finished, run.failed, run.tokens) == (3, 3, 0, 15)
    assert (run.lost, run.reordered, run.late, run.problem) == (0, 0, 0, "")
    assert run.first is not None
    assert run.first.count == 3
    assert run.delay is not None
    assert run.delay.count == 15
    assert run.gap is not None
    assert run.gap.count == 12


async def test_the_delay_is_counted_from_the_time_in_the_token(built: Programs) -> None:
    before = asyncio.get_running_loop().time()  # CLOCK_MONOTONIC, like the token's
    run = await streams(built, answering(token(0)), 1)
    after = asyncio.get_running_loop().time()
    assert run.delay is not None
    assert (before - 1) * 1e6 <= run.delay.max_us <= (after - 1) * 1e6 + 1


async def test_a_token_that_is_missing_is_lost(built: Programs) -> None:
    run = await streams(built, answering(token(0), token(2), token(3)), 4)
    assert (run.finished, run.tokens, run.lost, run.reordered) == (1, 3, 1, 0)


async def test_tokens_missing_at_the_end_are_lost(built: Programs) -> None:
    run = await streams(built, answering(token(0), token(1)), 5)
    assert (run.finished, run.tokens, run.lost) == (1, 2, 3)


async def test_a_token_behind_a_later_one_is_reordered_and_not_lost(built: Programs) -> None:
    run = await streams(built, answering(token(0), token(2), token(1), token(3)), 4)
    assert (run.finished, run.tokens, run.lost, run.reordered) == (1, 4, 0, 1)


async def test_frames_may_be_cut_anywhere(built: Programs) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        whole = "".join(f'data: {{"choices": [{{"delta": {{"content": "{token(number)}"}}}}]}}\r\n\r\n' for number in range(3))
        await exchange.start_stream()
        for character in whole + "data: [DONE]\n\n":
            await exchange.chunk(character.encode())
        await exchange.end_stream()

    run = await streams(built, scenario, 3)
    assert (run.finished, run.tokens, run.lost, run.problem) == (1, 3, 0, "")


async def test_a_stream_without_done_has_failed(built: Programs) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk(token(0)))
        await exchange.end_stream()

    run = await streams(built, scenario, 1)
    assert (run.finished, run.failed, run.problem) == (0, 1, "a stream ended without [DONE]")


async def test_a_connection_cut_in_mid_stream_has_failed(built: Programs) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk(token(0)))
        exchange.cut()

    run = await streams(built, scenario, 3)
    assert (run.finished, run.failed, run.tokens, run.lost) == (0, 1, 1, 2)
    assert run.problem == "a connection was closed in the middle of an answer"


async def test_what_does_not_come_in_time_is_late_and_not_lost(built: Programs) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk(token(0)), chunk(token(1)))
        await exchange.until_left()

    run = await streams(built, scenario, 5, grace_s=0.2)
    assert (run.finished, run.failed, run.tokens, run.lost, run.late) == (0, 0, 2, 0, 3)


async def test_an_error_is_a_failure_and_its_text_is_kept(built: Programs) -> None:
    run = await streams(built, failing(503, {"error": {"message": "too\nbusy"}}), 5)
    assert (run.finished, run.failed, run.tokens) == (0, 1, 0)
    assert "too" in run.problem
    async with scripted_upstream(failing(500, {"error": {"message": "broken"}})) as upstream:
        requests = read_requests(await asyncio.to_thread(run_load, built, "requests", upstream.port, connections=2, seconds=0.2))
    assert requests.finished == 0
    assert requests.failed > 0
    assert requests.answer is None
    assert "broken" in requests.problem


async def test_requests_are_sent_one_after_the_other_on_each_connection(built: Programs) -> None:
    async with scripted_upstream(answering("yes")) as upstream:
        run = read_requests(await asyncio.to_thread(run_load, built, "requests", upstream.port, connections=3, seconds=0.5, key="sk-1"))
        assert upstream.connections == 3
        assert len(upstream.asked) == run.begun
        assert upstream.asked[0].headers["authorization"] == "Bearer sk-1"
        assert not upstream.asked[0].json.get("stream")
    assert run.begun >= run.finished > 3
    assert run.failed == run.reconnects == 0
    assert run.answer is not None
    assert run.per_s > 0


async def test_repeating_streams_keep_their_connection(built: Programs) -> None:
    async with scripted_upstream(answering(token(0), token(1))) as upstream:
        line = await asyncio.to_thread(run_load, built, "streams", upstream.port, seconds=0.3, tokens=2, ramp_ms=0, repeat=True)
        assert upstream.connections == 1
    run = read_streams(line)
    assert run.finished == run.begun > 1
    assert run.tokens == 2 * run.begun
