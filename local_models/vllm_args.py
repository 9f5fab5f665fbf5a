"""What a user's own flags for vLLM say. Pure: nothing is checked here, vLLM does that.

A flag that stands in this mapping was decided by the user: nobody else may set it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-q": "--quantization",
    "-sc": "--speculative-config",
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def given_flags(args: Sequence[str]) -> dict[str, str | None]:
    """Value of each flag by its long name with hyphens; None for one without a value. The last of several counts, as for vLLM."""
    flags: dict[str, str | None] = {}
    name = None
    for arg in args:
        word, equals, value = arg.partition("=")
        if word in _SHORT or word.startswith("--"):
            name = _SHORT.get(word, word.replace("_", "-"))
            flags[name] = value if equals else None
        elif name is not None:
            flags[name], name = arg, None
    return flags


def whole(given: Mapping[str, str | None], name: str) -> int | None:
    """The number behind this flag, also as vLLM's 32k (thousands) or 32K (1024); None when it is not there or says something else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", given.get(name) or "")
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def fraction(given: Mapping[str, str | None], name: str) -> float | None:
    """The number above 0 and up to 1 behind this flag; None when it is not there or says something else."""
    text = given.get(name) or ""
    value = float(text) if re.fullmatch(r"\d*\.?\d+", text) else 0.0
    return value if 0 < value <= 1 else None
