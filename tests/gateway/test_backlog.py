"""Backlogs: nobody waits, nothing grows, nothing is lost unseen."""

from __future__ import annotations

import threading
import time

from gateway.backlog import Backlog

LONG_S = 20


class Slow:
    """A write that waits until it is let go."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.written: list[int] = []

    def __call__(self, items: list[int]) -> None:
        self.entered.set()
        assert self.let_go.wait(LONG_S)
        self.written += items


def test_everything_is_written_in_order_and_in_batches() -> None:
    batches: list[list[int]] = []
    backlog = Backlog("test", batches.append, limit=1000, batch=100, gather_s=LONG_S)
    for number in range(250):
        backlog.put(number)
    assert backlog.close(LONG_S)
    assert [number for batch in batches for number in batch] == list(range(250))
    assert max(map(len, batches)) <= 100
    assert (backlog.waiting, backlog.dropped) == (0, 0)


def test_a_few_are_written_without_a_full_batch() -> None:
    written = threading.Event()
    backlog = Backlog[int]("test", lambda items: written.set(), limit=10, batch=10, gather_s=0.001)
    backlog.put(1)
    assert written.wait(LONG_S)
    backlog.close(LONG_S)


def test_a_full_backlog_drops_what_comes_and_counts_it() -> None:
    slow = Slow()
    backlog = Backlog("test", slow, limit=5, batch=1, gather_s=0)
    backlog.put(0)
    assert slow.entered.wait(LONG_S)  # 0 is being written; 1 to 5 wait
    for number in range(1, 9):
        backlog.put(number)
    assert (backlog.waiting, backlog.dropped) == (5, 3)
    slow.let_go.set()
    assert backlog.close(LONG_S)
    assert slow.written == [0, 1, 2, 3, 4, 5]


def test_closing_gives_up_on_a_write_that_hangs() -> None:
    slow = Slow()
    backlog = Backlog("test", slow, limit=5, batch=1, gather_s=0)
    backlog.put(0)
    assert slow.entered.wait(LONG_S)
    backlog.put(1)
    assert not backlog.close(within_s=0.01)
    assert (backlog.waiting, backlog.dropped) == (0, 1)
    backlog.put(2)
    assert backlog.dropped == 2
    slow.let_go.set()
    assert backlog.close(LONG_S)
    assert slow.written == [0]


def test_a_write_that_fails_costs_its_batch_only() -> None:
    written: list[int] = []

    def write(items: list[int]) -> None:
        if items == [0]:
            raise OSError("disk full")
        written.extend(items)

    backlog = Backlog("test", write, limit=5, batch=1, gather_s=0)
    for number in range(3):
        backlog.put(number)
    assert backlog.close(LONG_S)
    assert (written, backlog.dropped) == ([1, 2], 1)


def test_many_threads_may_put_at_once() -> None:
    written: list[int] = []
    backlog = Backlog("test", written.extend, limit=100_000, batch=64, gather_s=0.001)

    def put() -> None:
        for number in range(1000):
            backlog.put(number)

    putting = [threading.Thread(target=put) for _ in range(4)]
    for thread in putting:
        thread.start()
    for thread in putting:
        thread.join()
    assert backlog.close(LONG_S)
    assert sorted(written) == sorted(list(range(1000)) * 4)


def test_work_is_followed_by_rest_in_proportion_and_closing_ends_the_rest() -> None:
    written: list[int] = []
    first, second = threading.Event(), threading.Event()

    def write(items: list[int]) -> None:
        begun_s = time.thread_time()
        while time.thread_time() - begun_s < 0.005:
            sum(range(1000))
        written.extend(items)
        (second if first.is_set() else first).set()

    backlog = Backlog("test", write, limit=5, batch=1, gather_s=0, rest=100_000)
    backlog.put(1)
    assert first.wait(LONG_S)
    backlog.put(2)
    assert not second.wait(0.05)
    assert backlog.close(LONG_S)
    assert (written, backlog.dropped) == ([1, 2], 0)
