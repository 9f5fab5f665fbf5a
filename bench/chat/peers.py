"""The gateways of others that Tandem is held against, each installed into an environment of its own.

Versions are pinned, so that two runs measure the same thing; raise them by hand. What was installed is written down last: an
interrupted installation starts anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.chat.errors import EntrantFailed

_LIMIT_S = 1200


@dataclass(frozen=True)
class Peer:
    """name: of its environment. requirement: for pip, with the version pinned. script: what the package puts into bin."""

    name: str
    requirement: str
    script: str

    @property
    def version(self) -> str:
        return self.requirement.partition("==")[2]


# The newest whose extra `proxy` installs in November 2026: those after it ask for a package, litellm-proxy, that was never published.
LITELLM = Peer("litellm", "litellm[proxy]==1.108.7", "litellm")
VLLM_ROUTER = Peer("vllm-router", "vllm-router==0.1.17", "vllm-router")


def install(peer: Peer, cache: Path, say: Callable[[str], None]) -> Path:
    """Path of the peer's script, installed first where it is not there. Raises EntrantFailed."""
    folder = cache / peer.name
    mark, script = folder / "installed", folder / "bin" / peer.script
    if mark.exists() and mark.read_text() == peer.requirement and script.exists():
        return script
    say(f"installing {peer.requirement} into {folder} (once; a minute or two)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = cache / f"{peer.name}.log"
    log.write_bytes(b"")
    _run([sys.executable, "-I", "-m", "venv", str(folder)], log)
    python = str(folder / "bin" / "python")
    uv = _find_uv()
    with_uv = uv is not None and _succeeds([uv, "pip", "install", "--quiet", "--python", python, peer.requirement], log)
    if not with_uv:
        _run([python, "-I", "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet", peer.requirement], log)
    if not script.exists():
        raise EntrantFailed(f"{peer.requirement} has no script {peer.script}")
    mark.write_text(peer.requirement)
    return script


def _find_uv() -> str | None:
    """As requirements/install.py finds it: on the PATH, or in the environment that it made."""
    beside = Path(sys.executable).parent / "uv"
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def _run(command: list[str], log: Path) -> None:
    if not _succeeds(command, log):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise EntrantFailed(f"cannot be installed ({lines[-1][:200] if lines else 'no output'}); all of it in {log}")


def _succeeds(command: list[str], log: Path) -> bool:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
    environ = {"UV_NATIVE_TLS": "true", "UV_SYSTEM_CERTS": "true", **kept}
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ, timeout=_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            output.write(f"took longer than {_LIMIT_S} s\n".encode())
            return False
    return done.returncode == 0
