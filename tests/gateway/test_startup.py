"""What must hold before anything starts."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gateway import startup
from gateway.startup import CannotStart, Wishes


@pytest.mark.parametrize(
    ("wishes", "environ", "path"),
    [
        (Wishes(data_dir=Path("/a")), {"TANDEM_DATA_DIR": "/b", "XDG_DATA_HOME": "/c"}, "/a"),
        (Wishes(), {"TANDEM_DATA_DIR": "/b", "XDG_DATA_HOME": "/c"}, "/b"),
        (Wishes(), {"XDG_DATA_HOME": "/c"}, "/c/tandem"),
        (Wishes(), {}, "/h/.local/share/tandem"),
        (Wishes(data_dir=Path("~/d")), {}, "/h/d"),
    ],
)
def test_the_data_directory(monkeypatch: pytest.MonkeyPatch, wishes: Wishes, environ: dict[str, str], path: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert startup.data_dir_of(wishes, environ) == Path(path)


def test_a_new_data_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    startup.prepare_data_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_command_line_goes_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wishes = Wishes(profile="demo", host="::1", port=1, chat_port=2)
    settings = startup.choose(wishes, {"TANDEM_PORT": "7", "TANDEM_HOST": "x", "TANDEM_CHAT_PORT": "8"}).settings
    assert (settings.server.host, settings.server.port, settings.chat_app.port) == ("::1", 1, 2)


def test_tandem_yaml_of_the_working_directory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tandem.yaml").write_text("server: {port: 9}\n")
    choice = startup.choose(Wishes(), {"PATH": str(tmp_path)})
    assert (choice.settings.server.port, choice.config_file) == (9, Path("tandem.yaml"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_listener_already_listens(host: str) -> None:
    with startup.listen(host, 0, "--port") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(CannotStart, match=f"port {port} on {host} is in use"):
            startup.listen(host, port, "--port")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "port 80 needs rights that this user does not have; choose one above 1023 with --port"),
        (errno.EADDRNOTAVAIL, "cannot listen on host 'h': it is no address of this machine; choose another one with --host"),
        (errno.ENOBUFS, "cannot listen on h, port 80: No buffer space available"),
    ],
)
def test_why_a_port_cannot_be_had(number: int, text: str) -> None:
    assert startup._why_not(OSError(number, "No buffer space available"), "h", 80, "--port") == text


def test_a_free_port_is_free_again() -> None:
    port = startup.free_port_for("127.0.0.1", 0, "--chat-port")
    assert startup.free_port_for("127.0.0.1", port, "--chat-port") == port


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:1/v1"),
        ("0.0.0.0", "http://127.0.0.1:1/v1"),
        ("::", "http://[::1]:1/v1"),
        ("my-host", "http://my-host:1/v1"),
    ],
)
def test_the_address_for_people(host: str, address: str) -> None:
    assert startup.url(host, 1, "/v1") == address


def test_one_part_of_a_data_directory_has_one_holder(tmp_path: Path) -> None:
    with startup.claimed(tmp_path, "api") as note:
        note("http://a longer address than the next one")
        note("http://a")
        with startup.claimed(tmp_path, "chat-app"), pytest.raises(CannotStart, match=r"\(process \d+, http://a\); stop it"):
            startup.claimed(tmp_path, "api").__enter__()
    with startup.claimed(tmp_path, "api"):
        pass


def test_the_keys_and_where_they_lie(tmp_path: Path) -> None:
    first = startup.keys_in(tmp_path, {})
    assert first.created
    assert first.path == tmp_path / "api_key"
    second = startup.keys_in(tmp_path, {})
    assert (second.plain, second.created) == (first.plain, False)
    given = startup.keys_in(tmp_path, {"TANDEM_API_KEY": "mine"})
    assert (given.plain, given.path) == ("mine", None)


def test_managed_keys_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(CannotStart, match=r"cannot use the keys in .*keys\.json \(Invalid JSON: .*\); correct the file"):
        startup.keys_in(tmp_path, {})
