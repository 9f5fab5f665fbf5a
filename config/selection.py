"""Which profile to take when nobody names one. Pure: facts in, decision and reason out."""

from __future__ import annotations

from config.hardware import Gpu

KEY_VARIABLE = "OPENROUTER_API_KEY"
# Profile gpu gives vLLM 0.6 of the card: Qwen3.5-9B in bf16 wants 22 GB (vLLM's recipe for it), FLUX.2-klein up to 13 GB of the rest.
# The smallest cards on which both fit are sold as 40 GB.
GPU_BYTES = 40 * 10**9


def choose_profile(gpu: Gpu | None, engine_installed: bool, has_key: bool) -> tuple[str, str]:
    """Profile and the reason, as a phrase that fits behind its name. gpu: the one with most memory; engine: vLLM."""
    fits = gpu is not None and gpu.total_bytes >= GPU_BYTES
    if fits and engine_installed:
        return "gpu", f"this machine has {gpu} and vLLM"
    if gpu is None:
        lack = "no NVIDIA GPU found"
    elif not fits:
        lack = f"the GPU ({gpu}) has less than the {GPU_BYTES / 10**9:.0f} GB of profile gpu"
    else:
        lack = f"this machine has {gpu}, but vLLM is not installed"
    if has_key:
        return "hosted", f"{KEY_VARIABLE} is set; {lack}"
    return "demo", f"{lack}, and {KEY_VARIABLE} is not set"
