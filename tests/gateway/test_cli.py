"""The command line as a person meets it: real processes, their output and exit codes."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import PROJECT, parser, port_number

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
LIMIT_S = 60


def environment(home: Path, **more: str) -> dict[str, str]:
    """A machine without keys, GPUs or settings."""
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "PYTHONSAFEPATH": "1", "NO_COLOR": "1", **more}


def tandem(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        cwd=folder,
        env=environment(folder, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The line on stderr of a command that could not start."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("tandem: ")
    return result.stderr.removeprefix("tandem: ").rstrip("\n")


class Running:
    """A command that stays, and what it printed so far."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], more: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *arguments],
            cwd=folder,
            env=environment(folder, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # A start that hangs must not hang the test: pytest's own time-out cannot interrupt a read.
        self._guard = threading.Timer(LIMIT_S, self.process.kill)
        self._guard.start()
        self.output = ""

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return self.output
        pytest.fail(f"ended without saying {text!r}:\n{self.output}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.output += self.process.stdout.read()
        self._guard.cancel()
        return self.process.wait()


@contextmanager
def running(folder: Path, *arguments: str, **more: str) -> Iterator[Running]:
    command = Running(folder, arguments, more)
    try:
        yield command
    finally:
        command.end(signal.SIGKILL)
        assert command.process.stdout is not None
        command.process.stdout.close()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


class TestRefusals:
    def test_a_taken_port(self, tmp_path: Path, taken_port: int) -> None:
        line = one_line(tandem(tmp_path, "serve", "--port", str(taken_port)))
        other = taken_port + 1 if taken_port < 65535 else 0
        assert line == (f"port {taken_port} on 127.0.0.1 is in use; stop the program that has it, or choose another port: --port {other}")

    def test_a_taken_chat_port(self, tmp_path: Path, taken_port: int) -> None:
        line = one_line(tandem(tmp_path, "up", "--port", "0", "--chat-port", str(taken_port)))
        assert line.startswith(f"port {taken_port} on 127.0.0.1 is in use")
        assert "--chat-port" in line

    @pytest.mark.parametrize("host", ["no such host", "host.invalid"])
    def test_a_host_that_is_not_ours(self, tmp_path: Path, host: str) -> None:
        line = one_line(tandem(tmp_path, "serve", "--port", "0", "--host", host))
        assert line == f"cannot listen on host '{host}': it is no address of this machine; choose another one with --host"

    def test_a_data_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        line = one_line(tandem(tmp_path, "serve", "--data-dir", "file/data"))
        assert line == (f"cannot write to the data directory {tmp_path}/file/data (Not a directory); choose another one with --data-dir")

    @pytest.mark.parametrize("command", ["up", "serve", "chat", "check", "models"])
    def test_a_wrong_configuration(self, tmp_path: Path, command: str) -> None:
        (tmp_path / "tandem.yaml").write_text("server:\n  prot: 1\n")
        assert one_line(tandem(tmp_path, command)) == "tandem.yaml:2: unknown key 'prot' (did you mean 'port'?)"

    def test_a_configuration_that_is_not_there(self, tmp_path: Path) -> None:
        assert one_line(tandem(tmp_path, "check", "--config", "my.yaml")) == "my.yaml: no such file; name an existing one with --config"

    def test_an_unknown_profile(self, tmp_path: Path) -> None:
        assert one_line(tandem(tmp_path, "up", "--profile", "dmeo")).startswith("unknown profile 'dmeo' (did you mean 'demo'?)")

    def test_a_key_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "api_key").write_bytes(b"\xff\xfe")
        line = one_line(tandem(tmp_path, "serve", "--port", "0", "--data-dir", str(tmp_path)))
        assert line == f"cannot read or write the API key in {tmp_path}/api_key (not text); correct the file, or remove it"

    def test_an_unknown_model_to_download(self, tmp_path: Path) -> None:
        line = one_line(tandem(tmp_path, "models", "download", "dmeo"))
        assert line == "unknown model 'dmeo'; the models of profile demo are: demo, demo-image"

    @pytest.mark.parametrize("arguments", [["serve", "--port", "eighty"], ["serve", "--port", "65536"], ["sevre"], []])
    def test_a_command_line_that_makes_no_sense(self, tmp_path: Path, arguments: list[str]) -> None:
        result = tandem(tmp_path, *arguments)
        assert result.returncode == 2
        assert result.stderr.startswith("usage: tandem")


class TestReports:
    def test_check_of_the_demo_profile(self, tmp_path: Path) -> None:
        result = tandem(tmp_path, "check")
        assert result.stderr == ""
        assert "profile demo: no NVIDIA GPU found, and OPENROUTER_API_KEY is not set" in result.stdout
        assert "demo (chat)" in result.stdout
        assert "1. builtin:demo-image on demo-images (diffusers):" in result.stdout

    def test_check_says_what_is_missing_and_how_to_get_it(self, tmp_path: Path) -> None:
        result = tandem(tmp_path, "check", "--profile", "gpu")
        assert result.returncode == 1
        for text in ("no NVIDIA GPU", "vLLM is not installed", "tandem models download qwen3.5-9b", "export OPENROUTER_API_KEY=..."):
            assert text in result.stdout

    def test_a_key_selects_the_hosted_profile_and_is_not_shown(self, tmp_path: Path) -> None:
        result = tandem(tmp_path, "check", OPENROUTER_API_KEY="s3cret")
        assert "profile hosted: OPENROUTER_API_KEY is set; no NVIDIA GPU found" in result.stdout
        assert "1. qwen/qwen3.5-9b on openrouter (openrouter): usable" in result.stdout
        assert "s3cret" not in result.stdout

    def test_profile_and_file_may_come_by_the_environment(self, tmp_path: Path) -> None:
        (tmp_path / "my.yaml").write_text("server: {port: 9}\n")
        result = tandem(tmp_path, "check", TANDEM_PROFILE="laptop", TANDEM_CONFIG="my.yaml")
        assert "profile laptop: named by TANDEM_PROFILE\nread: profile laptop, my.yaml\n" in result.stdout

    def test_models_lists_each_public_name(self, tmp_path: Path) -> None:
        for arguments in (["models"], ["models", "list"], ["models", "--profile", "demo", "list"]):
            lines = tandem(tmp_path, *arguments).stdout.splitlines()
            assert [line.split()[:2] for line in lines] == [["demo", "chat"], ["demo-image", "image"]]

    def test_models_keeps_a_profile_named_before_the_action(self, tmp_path: Path) -> None:
        assert tandem(tmp_path, "models", "--profile", "laptop", "list").stdout.startswith("qwen3.5-0.8b")

    def test_a_model_that_needs_no_download(self, tmp_path: Path) -> None:
        result = tandem(tmp_path, "models", "download", "demo")
        assert result.returncode == 0
        assert result.stdout.startswith("demo: nothing to download")

    def test_help_names_every_command(self, tmp_path: Path) -> None:
        text = tandem(tmp_path, "--help").stdout
        for command in ("up", "serve", "chat", "check", "models", "engines", "plan", "keys", "usage", "test"):
            assert f"\n    {command} " in text


class TestServing:
    def test_serve_prints_the_key_once_and_leaves_with_0(self, tmp_path: Path) -> None:
        with running(tmp_path, "serve", "--port", "0") as first:
            output = first.read_until("Ctrl-C")
            port = int(ADDRESS.findall(output)[-1])
            assert get(port, "/healthz") == 200
            assert first.end() == 0
        key_file = tmp_path / ".local" / "share" / "tandem" / "api_key"
        key = key_file.read_text().strip()
        assert f"{key}   (shown this once; kept in {key_file})" in output
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert first.output.rstrip().endswith("Ctrl-C ends everything")
        with running(tmp_path, "serve", "--port", "0") as second:
            output = second.read_until("Ctrl-C")
            assert key not in output
            assert f"in {key_file}" in output
            assert second.end(signal.SIGINT) == 0

    def test_a_given_key_is_used_and_none_is_made(self, tmp_path: Path) -> None:
        with running(tmp_path, "serve", "--port", "0", "--data-dir", "data", TANDEM_API_KEY="given-key") as command:
            output = command.read_until("Ctrl-C")
        assert "the value of TANDEM_API_KEY" in output
        assert "given-key" not in output
        assert not (tmp_path / "data" / "api_key").exists()

    def test_the_banner_says_which_profile_and_how_to_choose_another(self, tmp_path: Path) -> None:
        with running(tmp_path, "serve", "--port", "0") as command:
            output = command.read_until("Ctrl-C")
        assert "profile   demo: no NVIDIA GPU found, and OPENROUTER_API_KEY is not set" in output
        assert "choose another with --profile gpu | hosted | laptop, or write a tandem.yaml" in output

    def test_a_second_start_on_the_same_data_directory_says_so(self, tmp_path: Path) -> None:
        with running(tmp_path, "serve", "--port", "0") as command:
            port = ADDRESS.findall(command.read_until("Ctrl-C"))[-1]
            line = one_line(tandem(tmp_path, "serve", "--port", "0"))
        assert line == (
            f"Tandem already runs with the data directory {tmp_path}/.local/share/tandem"
            f" (process {command.process.pid}, http://127.0.0.1:{port}); stop it, or choose another one with --data-dir"
        )
        with running(tmp_path, "serve", "--port", "0") as again:  # the lock of a killed one does not stay
            again.read_until("Ctrl-C")

    def test_up_runs_both_and_ends_both(self, tmp_path: Path) -> None:
        with running(tmp_path, "up", "--port", "0", "--chat-port", "0") as command:
            api, chat = (int(port) for port in ADDRESS.findall(command.read_until("Ctrl-C"))[-2:])
            assert get(api, "/healthz") == 200
            assert get(chat, "/_stcore/health") == 200
            assert command.end() == 0
        assert is_refused(api)
        assert is_refused(chat)
        assert "Traceback" not in command.output
        assert "Error" not in command.output

    def test_the_chat_app_runs_alone(self, tmp_path: Path) -> None:
        with running(tmp_path, "chat", "--port", "1234", "--chat-port", "0") as command:
            output = command.read_until("it talks to the API at")
            assert output.endswith("it talks to the API at http://127.0.0.1:1234/v1\n")
            assert get(int(ADDRESS.findall(output)[0]), "/_stcore/health") == 200
            assert command.end(signal.SIGINT) == 0


@pytest.mark.parametrize("folder", ["config", "adapters", "gateway", "local_models", "chat_app"])
def test_our_packages_win_over_those_of_the_working_directory(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("raise SystemExit('the wrong one')")
    result = tandem(tmp_path, "check")
    assert result.stderr == ""
    assert result.stdout.startswith("profile demo")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gateway.cli import main\ntry:\n    main(['check', '--help'])\nexcept SystemExit:\n    print(sorted(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=True
    )
    loaded = result.stdout.splitlines()[-1]
    for module in ("pydantic", "yaml", "asyncio", "uvicorn", "rich", "torch", "huggingface_hub", "streamlit"):
        assert f"'{module}'" not in loaded


@pytest.mark.parametrize("command", ["up", "serve", "chat", "check", "models", "engines", "plan", "usage"])
def test_every_command_takes_configuration_and_profile(command: str) -> None:
    options = parser().parse_args([command, "--config", "a.yaml", "--profile", "demo"])
    assert (options.config, options.profile) == (Path("a.yaml"), "demo")


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("8000", 8000), ("65535", 65535)])
def test_a_port_is_a_number(text: str, port: int) -> None:
    assert port_number(text) == port
