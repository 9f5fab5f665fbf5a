"""A PostgreSQL of a test's own: a private cluster that listens on a socket file only, and can be stopped, frozen and started."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

LIMIT_S = 60


class Cluster:
    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://tandem:s3cret@/postgres?host={self._folder}"

    def start(self) -> None:
        """Return once it answers."""
        if self._process is not None:
            return
        settings = ("listen_addresses=", f"unix_socket_directories={self._folder}", "fsync=off")
        flags = [part for setting in settings for part in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["postgres", "-D", str(self._folder / "data"), *flags], stdout=log, stderr=log, cwd=self._folder, **self._identity
            )
        deadline = time.monotonic() + LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL does not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # at once: connections are closed
            self._process.wait(LIMIT_S)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and requests, and says nothing."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        processes = [parent, *parent.children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs. Skips the test where there is no PostgreSQL, or where it cannot be run by anybody but root."""
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("no PostgreSQL here: initdb and postgres are not on the PATH")
    identity = _identity()
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # not below tmp_path: its name is too long for a socket, and other users cannot enter it
    own = Cluster(folder, identity)
    try:
        if identity:
            shutil.chown(folder, identity["user"], identity["group"])
        initdb = ["initdb", "-D", str(folder / "data"), "-U", "tandem", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        made = subprocess.run(initdb, capture_output=True, text=True, cwd=folder, **identity)
        assert made.returncode == 0, made.stderr
        own.start()
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _identity() -> dict[str, Any]:
    """Whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
            subprocess.run(["true"], check=True, user=user.pw_uid, group=user.pw_gid, extra_groups=[])
        except (KeyError, OSError):
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and this root may not become another user")
