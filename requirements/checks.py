"""What `./tandem test` runs: linters, types, import contracts, tests; all of them, whatever the earlier ones say.

With arguments, only pytest runs, with these arguments. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_LINT_IMPORTS = "import sys; from importlinter.cli import lint_imports_command; sys.argv[0] = 'lint-imports'; lint_imports_command()"


def commands(arguments: list[str]) -> dict[str, list[str]]:
    """Each check by name, in order. The tools run as modules: the scripts in .venv/bin break when a checkout is moved."""
    python = sys.executable
    tests = {"pytest": [python, "-m", "pytest", *arguments]}
    if arguments:
        return tests
    return {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "lint-imports": [python, "-c", _LINT_IMPORTS],
        **tests,
    }


def run(arguments: list[str]) -> int:
    """Run the checks; the exit code of the first that failed, else 0."""
    _provide_browser()
    _provide_older_sdk()
    statuses: dict[str, int] = {}
    for name, command in commands(arguments).items():
        print(f"tandem test: {name}", flush=True)
        statuses[name] = subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode
    failed = {name: status for name, status in statuses.items() if status != 0}
    if failed:
        print(f"tandem test: failed: {', '.join(failed)}", file=sys.stderr)
    return next(iter(failed.values()), 0)


def _provide_older_sdk() -> None:
    """Lay openai 2.x beside the environment, for the tests that use it instead of the locked 3.x; otherwise they skip."""
    lock = ROOT / "requirements" / "openai2.lock"
    folder = Path(sys.prefix) / "openai-2"
    mark = folder / "installed-by.lock"
    if mark.exists() and mark.read_text() == lock.read_text():
        return
    print("tandem test: installing openai 2.x beside the environment", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--require-hashes"]
    if subprocess.run([*pip, "--target", str(folder), "-r", str(lock)], stdin=subprocess.DEVNULL, check=False).returncode != 0:
        print("tandem test: openai 2.x could not be installed; its tests skip", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    mark.write_text(lock.read_text())


def _environment() -> dict[str, str]:
    """Ours, with the tools of this environment first on the PATH, and the checkout for child processes to import from."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def _provide_browser() -> None:
    """Install Chromium where that takes no question; otherwise say why the browser tests will skip."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print("tandem test: no Chromium on the PATH (install it with your package manager); the browser tests skip", flush=True)
        return
    print("tandem test: installing Chromium for the browser tests", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]):
        if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            print(f"tandem test: {' '.join(command)} failed; the browser tests skip", flush=True)
            return
