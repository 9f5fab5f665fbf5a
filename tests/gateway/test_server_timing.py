"""The Server-Timing header."""

from __future__ import annotations

import pytest

from gateway.server_timing import server_timing


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ((0.25, 0.2495), b"total;dur=250.000, upstream;dur=249.500, overhead;dur=0.500"),
        ((0.25, 0.2495, 0.1), b"total;dur=250.000, upstream;dur=249.500, queue;dur=100.000, overhead;dur=0.500"),
        ((0.000012, 0.0), b"total;dur=0.012, upstream;dur=0.000, overhead;dur=0.012"),
        # two clocks may disagree; a duration is never negative
        ((1.0, 1.0000001), b"total;dur=1000.000, upstream;dur=1000.000, overhead;dur=0.000"),
        ((100_000.0, 0.0), b"total;dur=100000000.000, upstream;dur=0.000, overhead;dur=100000000.000"),
    ],
)
def test_durations_are_milliseconds_and_overhead_is_what_is_left(given: tuple[float, ...], value: bytes) -> None:
    assert server_timing(*given) == value
