"""Lets torchvision load though its compiled part does not fit torch: it is built for CUDA, torch for the CPU.

Without that part torchvision fails at its import, because it registers more about two operators that nobody has declared. Declaring
them is enough for everything but calling them, which vLLM does not. Copied into an engine's environment, and loaded at its start, only
where torchvision could not be imported: not needed any more where the package index offers a torchvision built for the CPU.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is first asked for; finds nothing itself. library: kept, its end would withdraw them."""

    library: object = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision" and self.library is None:
            library = importlib.import_module("torch").library.Library("torchvision", "FRAGMENT")
            self.library = library
            for operator in OPERATORS:
                library.define(operator)
        return None


sys.meta_path.insert(0, BeforeTorchvision())
