"""./tandem and the installer behind it: the decisions, and the shell part against a made-up installation. Nothing is installed here."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import __version__
from requirements import checks, install
from requirements.install import InstallError, Meter, Progress, Record, after_line, explain, locked_packages

ROOT = Path(__file__).parent.parent
TOOLS = ("cat", "cmp", "dirname", "readlink", "sh")


# --- the installer -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "progress"),
    [
        (["Collecting numpy==2.4.6 (from -r run.lock (line 9))"], Progress(4, collected=1, label="numpy")),
        (["Collecting a==1", "  Downloading a-1.whl (3 kB)", "Progress 512 of 1024"], Progress(4, collected=1, fraction=0.5, label="a")),
        (["Collecting a==1", "Progress 5 of 0"], Progress(4, collected=1, fraction=1.0, label="a")),
        (["Processing /wheels/torch-2.13.0+cpu-cp311.whl (from -r torch.txt (line 1))"], Progress(4, collected=1, label="torch")),
        (["Ignoring colorama: markers 'sys_platform == \"win32\"' don't match your environment"], Progress(3)),
        (["Requirement already satisfied: sympy>=1.13.3 in ./x (from torch)"], Progress(3)),
        (["Installing collected packages: a, b, c"], Progress(3, installing=True, label="unpacking")),
        (["", "Looking in links: /wheels"], Progress(4)),
    ],
)
def test_the_lines_of_pip_move_the_progress(lines: list[str], progress: Progress) -> None:
    now = Progress(4)
    for line in lines:
        now = after_line(now, line + "\n")
    assert now == progress


def test_the_progress_only_grows_and_ends_at_one() -> None:
    lines = [
        "Collecting a==1",
        "Progress 1 of 2",
        "Progress 2 of 2",
        "Collecting b==1",
        "Collecting c==1",
        "Installing collected packages: a, b, c",
    ]
    now, shares = Progress(2), [0.0]
    for line in lines:
        now = after_line(now, line)
        shares.append(now.share())
    shares += [Progress(3, installed=done, installing=True).share() for done in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "no disk space left in /x (7 MB free)",
        ),
        ("WARNING: NewConnectionError(...)\nERROR: No matching distribution found for pip==26\n", "cannot download the packages; check"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution\n", "cannot download the packages; check"),
        ("error: Failed to fetch: `x`\n  Caused by: dns error\n", "cannot download the packages; check"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n",
            "a downloaded package does not match its locked hash",
        ),
        ("ERROR: [Errno 13] Permission denied: '/x/y'\n", "no permission to write in /x"),
        ("noise\nERROR: something new\nmore noise\n", "installing failed: ERROR: something new"),
        ("only noise\n\n", "installing failed: only noise"),
        ("", "installing failed: no output"),
    ],
)
def test_a_failure_is_one_line_with_its_cause(output: str, line: str) -> None:
    text = explain(output, 7_000_000, Path("/x"))
    assert text.startswith(line)
    assert "\n" not in text


def test_too_little_space_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    install.check_disk(tmp_path, install.NEEDED_BYTES)
    with pytest.raises(InstallError, match=r"not enough disk space in .*: 5 MB free, about 2500 MB needed"):
        install.check_disk(tmp_path, 5_000_000)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_moving_bar() -> None:
    screen = Screen()
    meter = Meter(screen)
    meter.show(0.5, "numpy")
    meter.say("done")
    assert screen.getvalue() == f"\r\033[K  [{'#' * 15}{'.' * 15}]  50 %  numpy\r\033[Ktandem: done\n"


def test_elsewhere_each_tenth_is_a_line() -> None:
    stream = io.StringIO()
    meter = Meter(stream)
    for step in range(101):
        meter.show(step / 100, "x")
    assert stream.getvalue().splitlines() == [f"tandem: {step} %  x" for step in range(0, 101, 10)]


def checkout(folder: Path) -> Path:
    """The files of a checkout that a start looks at."""
    shutil.copy2(ROOT / "tandem", folder / "tandem")
    (folder / "requirements").mkdir()
    for name in ("run.lock", "test.lock", "torch.txt"):
        (folder / "requirements" / name).write_text(f"{name}==1\n")
    return folder


def test_what_was_installed_is_believed_only_when_it_was_finished(tmp_path: Path) -> None:
    record = Record(checkout(tmp_path))
    (tmp_path / ".venv").mkdir()
    assert not record.has("run")
    record.begin()
    assert not record.has("run")
    record.finish("run")
    assert record.has("run")
    assert not record.has("run", "test")
    record.begin()
    assert not record.has("run")
    record.finish("run", "test")
    assert record.has("run", "test")


@pytest.mark.parametrize(("name", "lost"), [("run.lock", {"run", "test"}), ("torch.txt", {"run", "test"}), ("test.lock", {"test"})])
def test_a_changed_lock_asks_for_a_new_installation(tmp_path: Path, name: str, lost: set[str]) -> None:
    record = Record(checkout(tmp_path))
    (tmp_path / ".venv").mkdir()
    record.begin()
    record.finish("run", "test")
    (tmp_path / "requirements" / name).write_text("other==2\n")
    changed = Record(tmp_path)
    assert changed.has("run") is ("run" not in lost)
    assert changed.has("run", "test") is ("test" not in lost)


def test_a_second_installer_that_finds_the_work_done_does_nothing(tmp_path: Path) -> None:
    record = Record(checkout(tmp_path))
    (tmp_path / ".venv").mkdir()
    record.begin()
    record.finish("run")
    stream = io.StringIO()
    install.install(tmp_path, False, Meter(stream))
    assert stream.getvalue() == ""


# --- the locks -----------------------------------------------------------------------------------------------------------------------


def test_the_locks_pin_everything_by_hash_and_name_no_index() -> None:
    for name in ("run.lock", "test.lock"):
        text = (ROOT / "requirements" / name).read_text()
        blocks = re.split(r"\n(?=\S)", text.strip())
        assert all(re.match(r"[a-z0-9][a-z0-9._-]*==", block) and "--hash=sha256:" in block for block in blocks)
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text


def test_torch_and_what_only_its_cuda_build_needs_are_in_no_lock() -> None:
    locked = set(locked_packages((ROOT / "requirements" / "test.lock").read_text()))
    assert not {name for name in locked if name in ("torch", "triton", "torchvision") or name.startswith(("nvidia-", "cuda-"))}
    assert (ROOT / "requirements" / "torch.txt").read_text() == "torch==2.13.0\n"


def test_the_test_lock_agrees_with_the_run_lock() -> None:
    run, test = ((ROOT / "requirements" / name).read_text() for name in ("run.lock", "test.lock"))
    pins = re.compile(r"^\S+==\S+.*?(?= \\$)", re.MULTILINE)
    assert set(pins.findall(run)) <= set(pins.findall(test))


def test_every_dependency_of_the_project_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for lock, wanted in (("run", project["dependencies"]), ("test", project["optional-dependencies"]["test"])):
        locked = set(locked_packages((ROOT / "requirements" / f"{lock}.lock").read_text()))
        names = {re.split(r"[<>=!~;\[ ]", line)[0].lower() for line in wanted} - {"torch"}
        assert names <= locked
    assert project["version"] == __version__


# --- ./tandem ------------------------------------------------------------------------------------------------------------------------


def shims(folder: Path, **programs: str) -> Path:
    """A folder for the PATH with the few tools that the script needs, and these programs."""
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def installed(folder: Path) -> Path:
    """A checkout whose environment is this one, and whose command line says where it runs."""
    checkout(folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    # not a symlink: a Python that is started through one does not find the packages beside itself
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    record = Record(folder)
    record.begin()
    record.finish("run", "test")
    (folder / "gateway").mkdir()
    (folder / "gateway" / "__init__.py").touch()
    (folder / "gateway" / "cli.py").write_text("import os, sys\nprint(__file__, os.getcwd(), *sys.argv[1:], sep='|')\nsys.exit(3)\n")
    return folder


def start(script: Path, *arguments: str, cwd: Path, path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": str(path), "HOME": str(cwd), **more}
    return subprocess.run([script, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_finished_installation_starts_at_once_and_keeps_folder_arguments_and_status(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "work").mkdir()
    root = installed(tmp_path / "checkout")
    # a folder of the user's with the name of one of our packages, and no Python on the PATH
    (tmp_path / "work" / "gateway").mkdir()
    (tmp_path / "work" / "gateway" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    path = shims(tmp_path / "path")
    (tmp_path / "link").symlink_to(root / "tandem")
    for script in (root / "tandem", tmp_path / "link"):
        result = start(script, "check", "a b", "", cwd=tmp_path / "work", path=path, PYTHONPATH=str(tmp_path / "work"))
        assert result.stderr == ""
        assert result.stdout == f"{root}/gateway/cli.py|{tmp_path}/work|check|a b|\n"
        assert result.returncode == 3


@pytest.mark.parametrize("spoil", ["lock", "mark", "python"])
def test_an_installation_that_does_not_fit_is_not_used(tmp_path: Path, spoil: str) -> None:
    root = installed(tmp_path)
    if spoil == "lock":
        (root / "requirements" / "run.lock").write_text("new==1\n")
    elif spoil == "mark":
        (root / ".venv" / "tandem-installing").touch()
    else:
        (root / ".venv" / "tandem-python.installed").write_text("3.9\n")
    result = start(root / "tandem", "up", cwd=tmp_path, path=shims(tmp_path / "path"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("tandem: needs Python 3.11 or newer")


@pytest.mark.parametrize(
    ("programs", "line"),
    [
        ({}, "needs Python 3.11 or newer on the PATH. Install one, or name it: TANDEM_PYTHON=/path/to/python3"),
        ({"python3": "echo 3.9"}, "needs Python 3.11 or newer on the PATH; found only python3 3.9. Install one,"),
        ({"python3": "echo 3.10"}, "needs Python 3.11 or newer on the PATH; found only python3 3.10. Install one,"),
        ({"python": "echo 2.7"}, "needs Python 3.11 or newer on the PATH; found only python 2.7. Install one,"),
        ({"python3": "exit 127"}, "needs Python 3.11 or newer on the PATH. Install one,"),
    ],
)
def test_a_missing_or_old_python_is_one_line(tmp_path: Path, programs: dict[str, str], line: str) -> None:
    root = checkout(tmp_path)
    result = start(root / "tandem", cwd=tmp_path, path=shims(tmp_path / "path", **programs))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"tandem: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("given", ["/nowhere/python", "python3"])
def test_a_named_python_must_work(tmp_path: Path, given: str) -> None:
    path = shims(tmp_path / "path", python3="echo 3.9")
    result = start(checkout(tmp_path) / "tandem", cwd=tmp_path, path=path, TANDEM_PYTHON=given)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"tandem: TANDEM_PYTHON={given} is not a working Python 3.11 or newer\n"


@pytest.mark.parametrize(("version", "name"), [("3.11", "python3.11"), ("3.12", "python3"), ("3.20", "python"), ("4.0", "python3")])
def test_a_new_enough_python_is_handed_to_the_installer(tmp_path: Path, version: str, name: str) -> None:
    log = tmp_path / "log"
    program = f'case $2 in -S) echo {version} ;; *) echo "$@" >> {log}; exit 2 ;; esac'
    # python3.13 stands for a version manager's stand-in without a Python behind it
    path = shims(tmp_path / "path", **{"python3.13": "exit 127", name: program})
    result = start(checkout(tmp_path) / "tandem", "test", cwd=tmp_path, path=path)
    assert result.returncode == 2
    assert log.read_text() == f"-I {tmp_path}/requirements/install.py test\n"


def test_the_script_is_posix_shell() -> None:
    text = (ROOT / "tandem").read_text()
    assert text.startswith("#!/bin/sh\n")
    assert os.access(ROOT / "tandem", os.X_OK)
    for bashism in ("[[", "function ", "local ", "$'", "<<<", "source "):
        assert bashism not in text


# --- ./tandem test -------------------------------------------------------------------------------------------------------------------


def test_without_arguments_every_check_runs_and_pytest_comes_last() -> None:
    assert list(checks.commands([])) == ["ruff check", "ruff format", "mypy", "lint-imports", "pytest"]


def test_arguments_go_to_pytest_and_nothing_else_runs() -> None:
    assert checks.commands(["-k", "x"]) == {"pytest": [sys.executable, "-m", "pytest", "-k", "x"]}
