"""Everything that must hold before anything starts: configuration, data directory, ports, key.

Each step either returns or raises `CannotStart` with one line that names the value and the next step. Nothing here runs an engine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config import loader
from config.environments import environment_for, find_environments
from config.hardware import find_gpus, has_vllm
from config.loader import ConfigError
from config.schema import Settings
from config.selection import KEY_VARIABLE, choose_profile
from gateway.auth import KEY_FILE, KeyRing, load_or_create_keys
from gateway.key_file import KeyFileError

EXIT_CANNOT_START = 2
BACKLOG = 2048


class CannotStart(Exception):
    """Tandem cannot start as asked; the message is ready to print."""


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for; None: not mentioned."""

    config_file: Path | None = None
    profile: str | None = None
    data_dir: Path | None = None
    host: str | None = None
    port: int | None = None
    chat_port: int | None = None


@dataclass(frozen=True)
class Choice:
    """The configuration to run. reason: why this profile."""

    settings: Settings
    reason: str
    config_file: Path | None


def reported(run: Callable[[], int]) -> int:
    """The exit code of a command; what keeps it from starting goes to stderr as it is, without a traceback."""
    try:
        return run()
    except (CannotStart, ConfigError) as error:
        for line in str(error).splitlines():
            print(f"tandem: {line}", file=sys.stderr)
        return EXIT_CANNOT_START


def choose(wishes: Wishes, environ: Mapping[str, str]) -> Choice:
    """The configuration that these wishes and this machine lead to. Raises ConfigError."""
    named = environ.get("TANDEM_CONFIG")
    config_file = loader.find_config_file(wishes.config_file or (Path(named) if named else None), Path.cwd())
    profile, reason = _profile(wishes, environ)
    settings = loader.load(profile, config_file, environ)
    return Choice(_with_wishes(settings, wishes), reason, config_file)


def _profile(wishes: Wishes, environ: Mapping[str, str]) -> tuple[str, str]:
    if wishes.profile:
        return wishes.profile, "named by --profile"
    if environ.get("TANDEM_PROFILE"):
        return environ["TANDEM_PROFILE"], "named by TANDEM_PROFILE"
    gpus = find_gpus(environ)
    largest = max(gpus, key=lambda gpu: gpu.total_bytes, default=None)
    has_engine = environment_for("cuda", find_environments(data_dir_of(wishes, environ))) is not None or has_vllm(None, environ)
    return choose_profile(largest, has_engine, bool(environ.get(KEY_VARIABLE)))


def _with_wishes(settings: Settings, wishes: Wishes) -> Settings:
    """The command line goes over everything. Its values were checked when they were parsed."""
    server = {name: value for name, value in (("host", wishes.host), ("port", wishes.port)) if value is not None}
    chat_app = {} if wishes.chat_port is None else {"port": wishes.chat_port}
    return settings.model_copy(
        update={"server": settings.server.model_copy(update=server), "chat_app": settings.chat_app.model_copy(update=chat_app)}
    )


def data_dir_of(wishes: Wishes, environ: Mapping[str, str]) -> Path:
    """Where keys, logs and results live: --data-dir, TANDEM_DATA_DIR, XDG_DATA_HOME/tandem, ~/.local/share/tandem."""
    if wishes.data_dir is not None:
        return wishes.data_dir.expanduser().absolute()
    if environ.get("TANDEM_DATA_DIR"):
        return Path(environ["TANDEM_DATA_DIR"]).expanduser().absolute()
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tandem"


def prepare_data_dir(path: Path) -> None:
    """Make it, for this user only, and try to write there. Raises CannotStart."""
    probe = path / f".write-{os.getpid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CannotStart(f"cannot write to the data directory {path} ({error.strerror}); choose another one with --data-dir") from error


@contextmanager
def claimed(data_dir: Path, part: str) -> Iterator[Callable[[str], None]]:
    """Hold this part (api, chat-app) of the data directory; yields a function that notes the address for whoever comes second.

    One API for each data directory, whatever its port: two would write the same files. The kernel gives the lock back however
    this process ends. Raises CannotStart.
    """
    path = data_dir / f"{part}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"cannot write {path} ({error.strerror}); choose another data directory with --data-dir") from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().strip() or "starting"
            raise CannotStart(
                f"Tandem already runs with the data directory {data_dir} ({holder}); stop it, or choose another one with --data-dir"
            ) from error

        def note(address: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}, {address}\n")
            file.flush()

        yield note


def holder_of(data_dir: Path, part: str) -> str | None:
    """The address that the holder of this part of the data directory has noted; None where nobody holds it, or has noted none yet."""
    try:
        with (data_dir / f"{part}.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip().partition(", ")[2] or None
    except OSError:
        pass
    return None


# Bytes of an answer that the kernel holds for one client beside those on their way. More would only hide from us that a client is slow:
# by default it takes up to four megabytes, and says for minutes that nothing moves.
UNSENT = 128 * 1024


def listen(host: str, port: int, option: str) -> socket.socket:
    """A socket that listens there. option: the flag that chooses the port. Raises CannotStart."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise CannotStart(f"cannot listen on host '{host}': it is no address of this machine; choose another one with --host") from error
    listener = socket.socket(family, kind, protocol)  # with its protocol: asyncio sets TCP_NODELAY only where that is said to be TCP
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # what it accepts inherits it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(_why_not(error, host, port, option)) from error
    listener.setblocking(False)
    return listener


def _why_not(error: OSError, host: str, port: int, option: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            other = port + 1 if port < 65535 else 0
            return f"port {port} on {host} is in use; stop the program that has it, or choose another port: {option} {other}"
        case errno.EACCES:
            return f"port {port} needs rights that this user does not have; choose one above 1023 with {option}"
        case errno.EADDRNOTAVAIL:
            return f"cannot listen on host '{host}': it is no address of this machine; choose another one with --host"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def free_port_for(host: str, port: int, option: str) -> int:
    """This port if nobody has it, a free one for 0. Raises CannotStart."""
    with listen(host, port, option) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Keys:
    """The keys of this installation. plain: one that is accepted, for our own chat app. created: it was made just now."""

    ring: KeyRing
    plain: str
    created: bool
    path: Path | None


def keys_in(data_dir: Path, environ: Mapping[str, str]) -> Keys:
    """Load the keys, or make one. path: the file that holds it; None when it came by TANDEM_API_KEY. Raises CannotStart."""
    path = data_dir / KEY_FILE
    try:
        ring, created = load_or_create_keys(data_dir, environ)
        given = environ.get("TANDEM_API_KEY", "").strip()
        plain = created or given or path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise CannotStart(f"cannot read or write the API key in {path} ({reason}); correct the file, or remove it") from error
    except KeyFileError as error:
        raise CannotStart(str(error)) from error
    return Keys(ring, plain, created is not None, None if given else path)


def reachable(host: str) -> str:
    """An address by which a program on this machine reaches a server that listens on `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def url(host: str, port: int, path: str = "") -> str:
    """http:// address for a person on this machine."""
    name = reachable(host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}{path}"
