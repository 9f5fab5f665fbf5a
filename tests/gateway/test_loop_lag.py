"""Event-loop lag, on a loop whose clock the test turns, and on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.loop_lag import Lag, LoopLag


class Clockwork:
    """A loop that has one timer and the time that the test says; it is its timer's handle, too."""

    def __init__(self) -> None:
        self.now, self.due = 100.0, 0.0
        self.timers: list[Callable[[], object]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Clockwork:
        self.due = when
        self.timers.append(callback)
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def run_late(self, late_s: float) -> None:
        (callback,) = self.timers
        self.timers.clear()
        self.now = self.due + late_s
        callback()


def test_the_last_lag_and_the_largest_since_the_last_reading() -> None:
    loop, lag = Clockwork(), LoopLag(interval_s=0.5)
    lag.start(loop)
    loop.run_late(0.25)
    loop.run_late(0.0)
    assert lag.take() == Lag(last_s=0.0, max_s=0.25)
    assert lag.take() == Lag(last_s=0.0, max_s=0.0)
    loop.run_late(0.125)
    assert lag.take() == Lag(last_s=0.125, max_s=0.125)


def test_a_loop_that_is_still_late_shows_it() -> None:
    loop, lag = Clockwork(), LoopLag(interval_s=0.5)
    lag.start(loop)
    loop.now += 0.5 + 2.0
    assert lag.take() == Lag(last_s=2.0, max_s=2.0)


def test_closing_leaves_no_timer_and_may_come_twice_or_first() -> None:
    loop, lag = Clockwork(), LoopLag()
    lag.close()
    lag.start(loop)
    loop.run_late(0.0)
    assert len(loop.timers) == 1
    lag.close()
    lag.close()
    assert loop.timers == []
    assert lag.take().last_s == 0.0


async def test_it_runs_on_the_running_loop_without_a_task() -> None:
    lag = LoopLag(interval_s=0.001)
    before = asyncio.all_tasks()
    lag.start()
    while lag.take().max_s == 0.0:
        await asyncio.sleep(0.002)
    assert asyncio.all_tasks() == before
    lag.close()
