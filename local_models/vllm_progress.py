"""How far a vLLM is with its start, read from the lines of its log. Pure: a line in, the next `Loading` out.

The shares of progress are roughly those of the time on a GPU. A line that means nothing here changes nothing, so a vLLM that words its log
in another way costs the progress and no more. Source of the lines: vLLM 0.17 to 0.32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Loading:
    """progress: 0 to 1, never falls during one start. stage: for people."""

    progress: float
    stage: str


STARTING = Loading(0.0, "starting vLLM")
LISTING = Loading(0.98, "asking for its model list")
FIRST_TOKEN = Loading(0.99, "making a first token")


@dataclass(frozen=True)
class _Step:
    """A line that says it is reached. stage: may name the line's groups. upto: where the progress ends with the last of `done` of `all`."""

    line: re.Pattern[str]
    progress: float
    stage: str
    upto: float | None = None


_STEPS = (
    _Step(re.compile(r"Resolved architecture: "), 0.02, "reading the checkpoint's configuration"),
    _Step(re.compile(r"Initializing a V1 LLM engine"), 0.05, "starting the engine"),
    _Step(re.compile(r"Starting to load model"), 0.1, "loading weights"),
    _Step(
        re.compile(r"Loading [\w ]*checkpoint shards: .*?(?P<done>\d+)/(?P<all>\d+)"), 0.1, "loading weights: {done} of {all} files", 0.6
    ),
    _Step(re.compile(r"Loading weights took|Model loading took"), 0.6, "weights are loaded"),
    _Step(re.compile(r"Starting torch\.compile|Dynamo bytecode transform|Compiling a graph"), 0.62, "compiling (torch.compile)"),
    _Step(re.compile(r"Initial profiling/warmup run|Profiling CUDA graph memory|after profiling"), 0.78, "measuring its memory"),
    _Step(re.compile(r"KV cache size: (?P<tokens>[\d,]+) tokens"), 0.84, "room for {tokens} tokens in the KV cache"),
    _Step(re.compile(r"Warming up"), 0.85, "warming up"),
    _Step(
        re.compile(r"Capturing CUDA graphs.*?(?P<done>\d+)/(?P<all>\d+)"), 0.85, "capturing CUDA graphs: {done} of {all}", 0.95
    ),
    _Step(re.compile(r"Graph capturing finished"), 0.95, "CUDA graphs are captured"),
    _Step(re.compile(r"init engine \(profile"), 0.95, "the engine is ready"),
    _Step(re.compile(r"Starting vLLM (?:API )?server"), 0.97, "starting its server"),
)  # fmt: skip


def advance(loading: Loading, lines: Iterable[str]) -> Loading:
    """Where it is after these lines."""
    for line in lines:
        loading = _after(loading, line)
    return loading


def _after(loading: Loading, line: str) -> Loading:
    for step in _STEPS:
        if found := step.line.search(line):
            progress = step.progress
            if step.upto is not None:
                done, of = int(found["done"]), int(found["all"])
                progress += (step.upto - progress) * min(1.0, done / of if of else 1.0)
            # several workers write one log: what a slower one says must not take the progress back
            return Loading(progress, step.stage.format_map(found.groupdict())) if progress >= loading.progress else loading
    return loading
