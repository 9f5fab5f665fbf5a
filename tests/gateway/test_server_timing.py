"""The Server-Timing header."""

from __future__ import annotations

import pytest

from gateway.server_timing import server_timing


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ((0.25, 0.2495), b"total;dur=250, upstream;dur=249.5, overhead;dur=0.5"),
        ((0.25, 0.2495, 0.1), b"total;dur=250, upstream;dur=249.5, queue;dur=100, overhead;dur=0.5"),
        ((0.000012, 0.0), b"total;dur=0.012, upstream;dur=0, overhead;dur=0.012"),
        ((1.0, 1.0000001), b"total;dur=1000, upstream;dur=1000, overhead;dur=0"),  # two clocks may disagree; a duration is never negative
        ((100_000.0, 0.0), b"total;dur=100000000, upstream;dur=0, overhead;dur=100000000"),
    ],
)
def test_durations_are_milliseconds_and_overhead_is_what_is_left(given: tuple[float, ...], value: bytes) -> None:
    assert server_timing(*given) == value
