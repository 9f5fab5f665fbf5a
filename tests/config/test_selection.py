"""Which profile a machine gets, and what it is told about it."""

from __future__ import annotations

import pytest

from config.hardware import Gpu
from config.loader import load, profile_names
from config.schema import VllmUpstream
from config.selection import GPU_BYTES, choose_profile

BIG = Gpu(0, "NVIDIA L40S", 46068 * 2**20, 45000 * 2**20)
SMALL = Gpu(0, "NVIDIA RTX 4090", 24564 * 2**20, 24000 * 2**20)


@pytest.mark.parametrize(
    ("gpu", "engine", "key", "profile", "reason"),
    [
        (BIG, True, False, "gpu", "this machine has NVIDIA L40S, 45 GiB and vLLM"),
        (BIG, True, True, "gpu", "this machine has NVIDIA L40S, 45 GiB and vLLM"),
        (BIG, False, True, "hosted", "OPENROUTER_API_KEY is set; this machine has NVIDIA L40S, 45 GiB, but vLLM is not installed"),
        (
            BIG,
            False,
            False,
            "demo",
            "this machine has NVIDIA L40S, 45 GiB, but vLLM is not installed, and OPENROUTER_API_KEY is not set",
        ),
        (
            SMALL,
            True,
            False,
            "demo",
            "the GPU (NVIDIA RTX 4090, 24 GiB) has less than the 40 GB of profile gpu, and OPENROUTER_API_KEY is not set",
        ),
        (
            SMALL,
            True,
            True,
            "hosted",
            "OPENROUTER_API_KEY is set; the GPU (NVIDIA RTX 4090, 24 GiB) has less than the 40 GB of profile gpu",
        ),
        (None, True, True, "hosted", "OPENROUTER_API_KEY is set; no NVIDIA GPU found"),
        (None, False, True, "hosted", "OPENROUTER_API_KEY is set; no NVIDIA GPU found"),
        (None, True, False, "demo", "no NVIDIA GPU found, and OPENROUTER_API_KEY is not set"),
        (None, False, False, "demo", "no NVIDIA GPU found, and OPENROUTER_API_KEY is not set"),
    ],
)
def test_the_profile_and_its_reason(gpu: Gpu | None, engine: bool, key: bool, profile: str, reason: str) -> None:
    assert choose_profile(gpu, engine, key) == (profile, reason)
    assert profile in profile_names()


def test_the_smallest_card_holds_what_the_profile_asks_for() -> None:
    upstream = load("gpu", None, {}).upstreams["vllm"]
    assert isinstance(upstream, VllmUpstream)
    share = float(upstream.args[upstream.args.index("--gpu-memory-utilization") + 1])
    assert share * GPU_BYTES >= 22e9
    assert (1 - share) * GPU_BYTES >= 13e9
