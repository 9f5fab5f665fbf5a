"""One training run: a budget in steps or minutes, a learning rate that follows it, a progress bar and a checkpoint to resume from.

Data is drawn from `random.Random(f"{seed}:{step}")`, so that a resumed run goes on with new data instead of starting it again.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

_CHECKPOINT_EVERY_S = 120.0
_LINE_EVERY_S = 20.0
_BAR_WIDTH = 24


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Budget:
    """Where training ends: after `steps`, or after `minutes` of wall time if that comes first."""

    steps: int
    minutes: float | None = None

    def fraction(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is spent, 0 to 1."""
        by_time = elapsed_s / (60.0 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_time))


def learning_rate(peak: float, fraction: float, warmup: float = 0.03) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    if fraction < warmup:
        return peak * (0.02 + 0.98 * fraction / warmup)
    tail = (fraction - warmup) / (1.0 - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * tail)))


def use_best_device() -> torch.device:
    """New tensors and models are made on the GPU if there is one, on the CPU otherwise."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_device(device)
    return device


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.get_default_device())


def half_precision() -> torch.autocast:
    """bfloat16 where it counts; on a CPU with AVX-512 BF16 a step takes two thirds of the time."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16)


def trained(checkpoint: Path, part: str) -> dict[str, Any]:
    """State of one part of a run."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")["parts"][part]
    return state


def learn(loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """One step down, its length bounded."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


class Run:
    """Iterate over it for step numbers; `log` a loss in each. Saves every two minutes and at the end."""

    def __init__(self, name: str, checkpoint: Path, budget: Budget, parts: Mapping[str, Stateful]) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.budget = budget
        self.step = 0
        self.fraction = 0.0
        self._parts = parts
        self._elapsed_s = 0.0
        self._losses: list[float] = []
        self._right: list[float] = []
        self._resume()

    def __iter__(self) -> Iterator[int]:
        last = saved = shown = time.monotonic()
        while (fraction := self.budget.fraction(self.step, self._elapsed_s)) < 1.0:
            self.fraction = fraction
            yield self.step
            self.step += 1
            now = time.monotonic()
            self._elapsed_s += now - last
            last = now
            if now - saved > _CHECKPOINT_EVERY_S:
                self.save()
                saved = now
            if now - shown > (0.5 if sys.stdout.isatty() else _LINE_EVERY_S):
                self._show()
                shown = now
        self.fraction = 1.0
        self.save()
        self._show()
        if sys.stdout.isatty():
            print()

    def log(self, loss: float, right: float | None = None) -> None:
        """right: share of a batch that was answered right, where that is known."""
        self._losses = [*self._losses[-49:], loss]
        self._right = [*self._right[-49:], *([] if right is None else [right])]

    def save(self) -> None:
        """Replace the checkpoint in one move: a killed run leaves the old one or the new one."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        half_written = self.checkpoint.with_suffix(".tmp")
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({"step": self.step, "elapsed_s": self._elapsed_s, "parts": state}, half_written)
        os.replace(half_written, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        self.step, self._elapsed_s = saved["step"], saved["elapsed_s"]
        for name, part in self._parts.items():
            part.load_state_dict(saved["parts"][name])
        print(f"{self.name}: goes on from step {self.step} of {self.checkpoint}", flush=True)

    def _show(self) -> None:
        done = self.budget.fraction(self.step, self._elapsed_s)
        bar = "#" * round(done * _BAR_WIDTH)
        loss = sum(self._losses) / max(1, len(self._losses))
        speed = self._elapsed_s / max(1, self.step)
        spent = f"{speed:.2f} s/step  {self._elapsed_s / 60:.1f} min"
        line = f"{self.name} [{bar:<{_BAR_WIDTH}}] {done:4.0%}  step {self.step}  loss {loss:.4f}  {spent}"
        if self._right:
            line += f"  right {sum(self._right) / len(self._right):.1%}"
        print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


class Average:
    """Exponential moving average of a module's parameters; slow to forget only once there is something to remember."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.998) -> None:
        self._module = module
        self._decay = decay
        self._updates = 0
        self._values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, value in self._module.state_dict().items():
            if value.is_floating_point():
                self._values[name].lerp_(value, 1.0 - decay)

    def apply(self) -> None:
        """Give the module the averaged values."""
        self._module.load_state_dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "values": self._values}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self._updates = state_dict["updates"]
        self._values = state_dict["values"]
