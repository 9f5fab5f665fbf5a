"""What an engine's environment can do, as one JSON object on the last line. Run by the Python of that environment: `verify.py ENGINE`.

Imports what a start imports, so that a missing or unfit package shows now and not at the first request.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys


def main(engine: str) -> None:
    torch = importlib.import_module("torch")
    importlib.import_module("torchvision")  # vLLM needs it for models that see
    version = importlib.import_module(engine).__version__
    importlib.import_module(f"{engine}.entrypoints.openai.api_server")
    device_type = importlib.import_module(f"{engine}.platforms").current_platform.device_type
    built_for = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    seen = None
    if built_for == "cpu":
        seen = platform.machine() if device_type == "cpu" else None
    elif device_type == "cuda" and torch.cuda.is_available():  # torch calls AMD cards cuda too
        seen = torch.cuda.get_device_name(0)
    found = {"version": version, "torch": torch.__version__, "python": platform.python_version(), "built_for": built_for, "seen": seen}
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main(sys.argv[1])
