"""Which profile a machine gets, and what it is told about it."""

from __future__ import annotations

import pytest

from config.hardware import Gpu
from config.loader import profile_names
from config.selection import choose_profile

BIG = Gpu(0, "NVIDIA RTX 4090", 24564 * 2**20, 24000 * 2**20)
SMALL = Gpu(0, "NVIDIA T4", 15360 * 2**20, 15000 * 2**20)


@pytest.mark.parametrize(
    ("gpu", "engine", "key", "profile", "reason"),
    [
        (BIG, True, False, "gpu", "this machine has NVIDIA RTX 4090, 24 GiB and vLLM"),
        (BIG, True, True, "gpu", "this machine has NVIDIA RTX 4090, 24 GiB and vLLM"),
        (BIG, False, True, "hosted", "OPENROUTER_API_KEY is set; this machine has NVIDIA RTX 4090, 24 GiB, but vLLM is not installed"),
        (
            BIG,
            False,
            False,
            "demo",
            "this machine has NVIDIA RTX 4090, 24 GiB, but vLLM is not installed, and OPENROUTER_API_KEY is not set",
        ),
        (
            SMALL,
            True,
            False,
            "demo",
            "the GPU (NVIDIA T4, 15 GiB) has less than the 22 GB that profile gpu needs, and OPENROUTER_API_KEY is not set",
        ),
        (
            SMALL,
            True,
            True,
            "hosted",
            "OPENROUTER_API_KEY is set; the GPU (NVIDIA T4, 15 GiB) has less than the 22 GB that profile gpu needs",
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
