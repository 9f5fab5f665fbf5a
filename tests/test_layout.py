"""What is imported from where, and what the gateway must not drag in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("config", "local_models", "adapters", "gateway", "chat_app")
HEAVY = ("torch", "transformers", "diffusers", "litellm", "streamlit", "vllm", "openai", "huggingface_hub", "numpy")


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_ours(package: str) -> None:
    module = __import__(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / package


def test_the_gateway_imports_nothing_heavy_and_holds_little() -> None:
    code = (
        "import json, sys; import gateway.server; modules = sorted(sys.modules); "
        "import psutil; print(json.dumps([modules, psutil.Process().memory_info().rss]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    modules, rss = json.loads(out)
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    assert rss < 150 * 1024 * 1024


def test_the_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = {name for name in re.findall(r"`([a-z_]+/[a-z_/]*[a-z_]+\.py)`", page) if name.split("/")[0] in PACKAGES}
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }  # fmt: skip
    assert named - there == set(), "named but not there"
    assert there - named == set(), "there but not named"
