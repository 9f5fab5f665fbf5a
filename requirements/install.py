"""Makes the environment beside this checkout equal to the locks, and shows how far it is.

`./tandem` calls it when `.venv` does not say that it was made by the present locks. Rule: what was installed is written down last, and an
environment that still has the mark of a running installation is thrown away; so an interrupted installation never half works.
Standard library only; Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
NEEDED_BYTES = 2_500_000_000  # measured: 1.3 GB with the CPU build of torch, 1.5 GB with the tests, and pip's copies while it works
EXIT_CANNOT = 2
EXIT_INTERRUPTED = 130

_NO_NETWORK = re.compile(
    r"name resolution|Name or service not known|nodename nor servname|Connection (?:refused|reset|timed out)|NewConnectionError"
    r"|Network is unreachable|ConnectTimeout|Read timed out|ProxyError|No matching distribution|Could not find a version"
    r"|Could not fetch|Failed to fetch|dns error|error sending request|client error \(Connect\)",
    re.IGNORECASE,
)


class InstallError(Exception):
    """The environment cannot be made; the message is one line, ready to print."""


# --- what pip says, as progress ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far one `pip install` of `total` packages is.

    collected: packages found so far, the current one included. fraction: of the current one's download. installed: on disk.
    """

    total: int
    collected: int = 0
    fraction: float = 0.0
    installed: int = 0
    installing: bool = False
    label: str = "packages"

    def share(self) -> float:
        """Part of the work done, 0 to 1. Downloads and unpacking count half each."""
        if self.installing:
            return 0.5 + 0.5 * min(1.0, self.installed / max(1, self.total))
        whole = max(0, self.collected - 1) + self.fraction
        return 0.5 * min(1.0, whole / max(1, self.total))


def after_line(progress: Progress, line: str) -> Progress:
    """The progress once pip has printed this line (with `--progress-bar raw`)."""
    line = line.strip()
    if match := re.match(r"(?:Collecting|Processing) (\S+?)(?:[=<>!~\[ ].*)?$", line):
        name = match[1].rsplit("/", 1)[-1].split("-")[0]
        total = max(progress.total, progress.collected + 1)
        return replace(progress, total=total, collected=progress.collected + 1, fraction=0.0, label=name)
    if match := re.match(r"Progress (\d+) of (\d+)$", line):
        return replace(progress, fraction=min(1.0, int(match[1]) / max(1, int(match[2]))))
    if line.startswith(("Ignoring ", "Requirement already satisfied")):
        return replace(progress, total=max(1, progress.total - 1))
    if match := re.match(r"Installing collected packages: (.+)$", line):
        return replace(progress, total=len(match[1].split(", ")), installing=True, label="unpacking")
    return progress


def locked_packages(lock: str) -> list[str]:
    """Names of the packages that a lock pins."""
    return re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock, re.MULTILINE)


def explain(output: str, free_bytes: int, where: Path, needed_bytes: int = NEEDED_BYTES) -> str:
    """Why pip failed, in one line with the next step."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return f"no disk space left in {where} ({free_bytes // 1_000_000} MB free); about {needed_bytes // 1_000_000} MB are needed"
    if "DO NOT MATCH THE HASHES" in output:
        return "a downloaded package does not match its locked hash; nothing of it was installed. Check your pip settings (pip config list)"
    if _NO_NETWORK.search(output):
        return "cannot download the packages; check the network, a proxy, and your pip settings (pip config list), then run the same again"
    if "Permission denied" in output:
        return f"no permission to write in {where}"
    errors = [line for line in output.splitlines() if line.startswith(("ERROR:", "error:"))]
    last = errors[-1] if errors else next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return f"installing failed: {last.strip()[:300]}"


# --- what the user sees --------------------------------------------------------------------------------------------------------------


class Meter:
    """One moving bar on a terminal; elsewhere one line for each tenth."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.moves = stream.isatty()
        self._shown = -1

    def show(self, fraction: float, label: str) -> None:
        percent = int(min(1.0, fraction) * 100)
        if self.moves:
            filled = percent * 30 // 100
            self._stream.write(f"\r\033[K  [{'#' * filled}{'.' * (30 - filled)}] {percent:3d} %  {label}"[:100])
            self._stream.flush()
        elif percent // 10 > self._shown // 10 or self._shown < 0:
            self._stream.write(f"tandem: {percent} %  {label}\n")
            self._stream.flush()
        else:
            return
        self._shown = percent

    def end_line(self) -> None:
        """Leave the bar as it is, for somebody else to write below it."""
        if self.moves:
            self._stream.write("\n")
            self._stream.flush()

    def say(self, text: str) -> None:
        self._stream.write(f"\r\033[Ktandem: {text}\n" if self.moves else f"tandem: {text}\n")
        self._stream.flush()


# --- the steps -----------------------------------------------------------------------------------------------------------------------


class Packages:
    """Puts packages into one environment, with pip or uv, and shows how far it is.

    pip: the command line up to `install`. lock_fd is inherited by the child, so that an orphaned pip still holds the lock.
    needed_bytes: of disk, for the message when there was too little. pip_tells_progress: it is 24.1 or newer.
    """

    def __init__(
        self,
        environment: Path,
        pip: list[str],
        meter: Meter,
        log: TextIO,
        lock_fd: int,
        needed_bytes: int = NEEDED_BYTES,
        pip_tells_progress: bool = True,
    ) -> None:
        self._environment = environment
        self._python = environment / "bin" / "python"
        self._pip_install = [*pip, "--no-input", "--disable-pip-version-check", "install", "--no-compile"]
        self._meter = meter
        self._log = log
        self._lock_fd = lock_fd
        self._needed_bytes = needed_bytes
        self._progress_bar = "raw" if pip_tells_progress else "off"

    def torch(self, arguments: list[str], uv: str | None, backend: str, total: int, start: float, end: float) -> None:
        """The build for this machine: the one that pip's own settings offer beside the index, or else the one uv finds to fit.

        pip alone would take several GB of CUDA libraries on any Linux, GPU or not. backend: auto or cpu, as uv takes it.
        """
        self._meter.show(start, "torch")
        if self.run([*self._pip_install, "--no-index", *arguments], check=False) != 0:
            self.uv_or_pip(uv, [f"--torch-backend={backend}", *arguments], arguments, total, start, end)

    def uv_or_pip(self, uv: str | None, uv_arguments: list[str], pip_arguments: list[str], total: int, start: float, end: float) -> None:
        """Install `total` packages while the bar moves from start to end; with pip where uv cannot. Raises InstallError."""
        if uv is not None:
            self._meter.show(start, "installing with uv")
            if self._uv([uv, "pip", "install", "--python", str(self._python), *uv_arguments]) == 0:
                self._meter.show(end, "installed with uv")
                return
            self._meter.say("uv could not install this part, trying pip")
        self.pip(["--progress-bar", self._progress_bar, *pip_arguments], total, start, end)

    def pip(self, arguments: list[str], total: int, start: float, end: float) -> None:
        """Install `total` packages while the bar moves from start to end. Raises InstallError."""
        self.run([*self._pip_install, *arguments], progress=Progress(total), start=start, end=end)

    def _uv(self, command: list[str]) -> int:
        """Exit status. uv draws its own progress, so on a terminal it gets the terminal."""
        if not self._meter.moves:
            return self.run([*command, "--quiet"], check=False)
        self._log.write(f"$ {' '.join(command)}\n")
        self._meter.end_line()
        return subprocess.run(command, stdin=subprocess.DEVNULL, env=surroundings(), pass_fds=[self._lock_fd], check=False).returncode

    def run(self, command: list[str], progress: Progress | None = None, start: float = 0.0, end: float = 0.0, check: bool = True) -> int:
        """Exit status of a command whose output moves the bar from start to end. Raises InstallError if it fails and check is set."""
        self._log.write(f"$ {' '.join(command)}\n")
        output: list[str] = []
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=surroundings(),
            pass_fds=[self._lock_fd],
        ) as child:
            try:
                before = self._count_installed()
                for line in _lines(child):
                    if line:
                        output.append(line)
                        self._log.write(line if not line.startswith("Progress ") else "")
                    if progress is not None:
                        progress = after_line(progress, line)
                        progress = replace(progress, installed=self._count_installed() - before) if progress.installing else progress
                        self._meter.show(start + (end - start) * progress.share(), progress.label)
                status = child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
        if status != 0 and check:
            folder = self._environment.parent
            raise InstallError(explain("".join(output), shutil.disk_usage(folder).free, folder, self._needed_bytes))
        return status

    def _count_installed(self) -> int:
        return sum(1 for _ in self._environment.glob("lib/python*/site-packages/*.dist-info/RECORD"))


class Installer:
    """Runs the steps for Tandem's own environment."""

    def __init__(self, venv: Path, meter: Meter, log: TextIO, lock_fd: int) -> None:
        self._venv = venv
        self._meter = meter
        self._packages = Packages(venv, [str(venv / "bin" / "python"), "-I", "-m", "pip"], meter, log, lock_fd)

    def make(self, with_tests: bool, fresh: bool) -> None:
        """Everything in the locks. Raises InstallError."""
        # The parts of the bar are proportional to the seconds they took on two cores: 4, 2, 20, 7, and 6 for the tests.
        run, test = LOCKS / "run.lock", LOCKS / "test.lock"
        uv = shutil.which("uv")
        if fresh:
            self._meter.show(0.0, "making .venv")
            self._packages.run([sys.executable, "-I", "-m", "venv", str(self._venv)])
            self._packages.pip(["--require-hashes", "--no-deps", *self._pip_itself(run)], 1, 0.08, 0.12)
            lock = ["--require-hashes", "--no-deps", "-r", str(run)]
            self._packages.uv_or_pip(uv, lock, lock, len(locked_packages(run.read_text())), 0.12, 0.65)
            torch_uv = uv or str(self._venv / "bin" / "uv")
            self._packages.torch(["-r", str(LOCKS / "torch.txt")], torch_uv, "auto", 8, 0.65, 0.85 if with_tests else 1.0)
        if with_tests:
            more = ["--require-hashes", "--no-deps", "-r", str(test)]
            self._packages.uv_or_pip(uv, more, more, len(locked_packages(test.read_text())), 0.85 if fresh else 0.0, 1.0)

    def _pip_itself(self, lock: Path) -> list[str]:
        """Arguments that bring the locked pip: the one that comes with Python may be too old to report progress."""
        match = re.search(r"^pip==.*(?:\n +--hash.*)+", lock.read_text(), re.MULTILINE)
        if match is None:
            raise InstallError(f"{lock} has no pip; make it anew with requirements/lock.sh")
        path = self._venv / "pip.lock"
        path.write_text(match[0] + "\n")
        return ["--progress-bar", "off", "-r", str(path)]


def surroundings() -> dict[str, str]:
    """Ours, without what would lead the installers elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET")}
    # One setting of uv by its older and its newer name: the certificates of this machine, as pip uses them.
    return {"UV_NATIVE_TLS": "true", "UV_SYSTEM_CERTS": "true", **kept}


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str]:
    """The child's output by line; an empty text whenever it has been silent for a while."""
    assert child.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=0.5):
                yield ""
                continue
            piece = os.read(child.stdout.fileno(), 65536)
            *whole, pending = (pending + piece).split(b"\n")
            yield from (line.decode(errors="replace") + "\n" for line in whole)
            if not piece:
                if pending:
                    yield pending.decode(errors="replace") + "\n"
                return


def check_python() -> None:
    """Raises InstallError if this Python cannot make an environment."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(
                f"{sys.executable} lacks the module {module}; install it (Debian, Ubuntu: apt-get install python3-venv)"
                " or name another Python with TANDEM_PYTHON=/path/to/python3"
            )


def check_disk(root: Path, free_bytes: int, needed_bytes: int = NEEDED_BYTES, otherwise: str = "move the checkout") -> None:
    """Raises InstallError if the environment cannot fit. otherwise: what helps beside freeing some."""
    if free_bytes < needed_bytes:
        raise InstallError(
            f"not enough disk space in {root}: {free_bytes // 1_000_000} MB free, about {needed_bytes // 1_000_000} MB needed;"
            f" free some, or {otherwise}"
        )


@contextmanager
def only_one(folder: Path, meter: Meter) -> Iterator[int]:
    """Hold the lock in this folder; the kernel releases it however this process ends. Yields its file descriptor."""
    folder.mkdir(exist_ok=True)
    with (folder / "install.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            meter.say("another ./tandem is installing here, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


class Record:
    """What `.venv` says it was made by. `./tandem` compares the same files."""

    def __init__(self, root: Path) -> None:
        self._venv = root / ".venv"
        locks = root / "requirements"
        self._wanted = {
            "run": (locks / "run.lock").read_text() + (locks / "torch.txt").read_text(),
            "test": (locks / "test.lock").read_text(),
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}\n",
        }
        self._running = self._venv / "tandem-installing"

    def has(self, *parts: str) -> bool:
        """Whether these parts are finished and as the locks want them."""
        return not self._running.exists() and all(self._said(part) == self._wanted[part] for part in (*parts, "python"))

    def begin(self) -> None:
        self._running.touch()

    def finish(self, *parts: str) -> None:
        for part in (*parts, "python"):
            self._file(part).write_text(self._wanted[part])
        self._running.unlink()

    def _said(self, part: str) -> str:
        return self._file(part).read_text() if self._file(part).exists() else ""

    def _file(self, part: str) -> Path:
        return self._venv / f"tandem-{part}.installed"


def install(root: Path, with_tests: bool, meter: Meter) -> None:
    """Make root/.venv equal to the locks. Raises InstallError, OSError."""
    venv = root / ".venv"
    parts = ("run", "test") if with_tests else ("run",)
    record = Record(root)
    check_python()
    with only_one(root / ".tandem", meter) as lock_fd, (root / ".tandem" / "install.log").open("w", buffering=1) as log:
        if record.has(*parts):  # another one did it meanwhile
            return
        fresh = not record.has("run")
        if fresh:
            check_disk(root, shutil.disk_usage(root).free)
            meter.say(f"installing into {venv} (first start, or the locks changed; 1 to 5 minutes)")
            shutil.rmtree(venv, ignore_errors=True)
            venv.mkdir(exist_ok=True)
        else:
            meter.say("installing what the tests need")
        record.begin()
        Installer(venv, meter, log, lock_fd).make(with_tests, fresh)
        record.finish(*parts)
        meter.show(1.0, "installed")
        meter.say("installed")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Make .venv by the locks.")
    parser.add_argument("what", choices=["run", "test"])
    options = parser.parse_args(arguments)
    meter = Meter(sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        install(ROOT, options.what == "test", meter)
    except InstallError as error:
        meter.say(f"{error}")
        return EXIT_CANNOT
    except OSError as error:
        meter.say(f"cannot install into {ROOT}: {error.strerror}: {error.filename}")
        return EXIT_CANNOT
    except KeyboardInterrupt:
        meter.say("interrupted; start ./tandem again to go on")
        return EXIT_INTERRUPTED
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
