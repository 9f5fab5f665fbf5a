"""Many paced streams at the same time: no token is lost or out of its place."""

from __future__ import annotations

import asyncio

import pytest

from bench.chat.programs import Programs
from bench.chat.results import read_streams
from tests.bench.running import run_load
from tests.soak.size import LIMIT_S, sized
from tests.soak.stage import Stage
from tests.soak.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]

STREAMS = sized(512, 64)
TOKENS = sized(500, 100)
PACE_US = 20_000


async def test_no_frame_is_lost_or_reordered(built: Programs, stage: Stage, table: Table) -> None:
    wishes = {"connections": STREAMS, "seconds": 1, "pace_us": PACE_US, "tokens": TOKENS, "ramp_ms": 500, "grace_s": 30}
    run = read_streams(await asyncio.to_thread(run_load, built, "streams", stage.door.port, key=stage.door.key, **wishes))
    assert (run.begun, run.finished, run.failed, run.problem) == (STREAMS, STREAMS, 0, "")
    assert (run.tokens, run.lost, run.reordered, run.late) == (STREAMS * TOKENS, 0, 0, 0)
    await stage.quiet()
    assert run.gap is not None
    times = f"p50 {run.gap.p50_us / 1000:.2f} ms, p99 {run.gap.p99_us / 1000:.2f} ms, max {run.gap.max_us / 1000:.2f} ms"
    table.add(f"order: {STREAMS} streams, a token each 20 ms", f"{run.tokens:,} tokens, 0 lost, 0 out of place; added gap {times}")
