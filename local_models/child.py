"""One engine process below its nanny, as the operating system sees it: started once, ended once.

No policy here: `Process` decides. `exited` is set the moment the engine ends, `gone` when nothing of it is left, its children included.
Everything is driven by the channel to the nanny (described there), so no child watcher or signal handler of the event loop is involved.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from local_models.launch import Launch
from local_models.logs import LOG_BYTES, open_log

NANNY = Path(__file__).with_name("nanny.py")
REAP_INTERVAL_S = 0.005
# how long to wait for orphans to die: longer only where the init process does not collect the dead
ORPHANS_S = 1.0
# what the nanny may need on top of the engine's grace: SIGKILL, and its own bounded clean-up
NANNY_MARGIN_S = 4.0


class Child:
    """pid: the engine's process and group id, None until the nanny said so.
    status: exit status, negative for a signal; None while it runs, and when the nanny could not tell.
    trouble: why there is no engine, when the nanny could not start one."""

    def __init__(self, launch: Launch, *, log: Path, grace_s: float, on_exit: Callable[[], None]) -> None:
        """Starts it. Raises OSError."""
        self.pid: int | None = None
        self.status: int | None = None
        self.trouble: str | None = None
        self.exited = asyncio.Event()
        self.gone = asyncio.Event()
        self._grace_s = grace_s
        self._on_exit = on_exit
        self._unread = b""
        self._loop = asyncio.get_running_loop()
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._nanny = _start_nanny(launch, theirs, log, grace_s)
            except OSError:
                self._channel.close()
                raise
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._on_report)

    def terminate(self) -> None:
        """Ask for its end: SIGTERM to the group, SIGKILL after the grace. Returns at once."""
        if self._channel.fileno() == -1:
            return
        try:
            self._channel.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the nanny is gone already (macOS says so here)

    async def end(self) -> None:
        """Return when nothing of it is left, whatever that takes."""
        self.terminate()
        try:
            await asyncio.wait_for(self.gone.wait(), self._grace_s + NANNY_MARGIN_S)
        except TimeoutError:
            self.kill()
            await self.gone.wait()

    def kill(self) -> None:
        """SIGKILL to engine, group and nanny, without waiting for anybody."""
        self._kill_group()
        if self._nanny.returncode is None:
            self._nanny.kill()

    def abandon(self) -> None:
        """End it without the event loop, which is about to end itself: SIGKILL, and the nanny looks for the rest.

        Blocks, as a rule for milliseconds. Without effect when it is gone.
        """
        if self.gone.is_set():
            return
        if not self.exited.is_set():
            self._kill_group()
        if self._channel.fileno() != -1:
            self._loop.remove_reader(self._channel)
            self._channel.close()
        try:
            self._nanny.wait(self._grace_s + NANNY_MARGIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._nanny.wait()
        self._has_exited()
        self.gone.set()

    def _on_report(self) -> None:
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:  # the nanny was killed with our order unread: a reset instead of an end
            data = b""
        if not data:
            self._on_nanny_gone()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "started":
                self.pid = int(value)
            elif word == "exited":
                self.status = int(value)
                self._has_exited()
            else:
                self.trouble = value

    def _on_nanny_gone(self) -> None:
        self._loop.remove_reader(self._channel)
        self._channel.close()
        orphaned = not self.exited.is_set()  # the nanny did not leave by itself, so it cleaned nothing up
        if orphaned:
            self._kill_group()
        self._has_exited()
        self._reap(group_until=self._loop.time() + ORPHANS_S if orphaned else 0.0)

    def _has_exited(self) -> None:
        if not self.exited.is_set():
            self.exited.set()
            self._on_exit()

    def _reap(self, group_until: float) -> None:
        """Wait for the nanny, and until that time for a killed group to be empty."""
        if self._nanny.poll() is None or (self._loop.time() < group_until and self._kill_group()):
            self._loop.call_later(REAP_INTERVAL_S, self._reap, group_until)
            return
        self.gone.set()

    def _kill_group(self) -> bool:
        """False when nobody is left in it."""
        if self.pid is None:
            return False
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            return False
        return True


def _start_nanny(launch: Launch, channel: socket.socket, log: Path, grace_s: float) -> subprocess.Popen[bytes]:
    output = open_log(log)
    try:
        if launch.note is not None:
            os.write(output, f"{launch.note}\n".encode())
        guard = [sys.executable, "-I", "-S", str(NANNY)]
        # absolute: the nanny may run in another folder than we do
        options = ["--grace", str(grace_s), "--log", str(log.absolute()), "--log-bytes", str(LOG_BYTES)]
        return subprocess.Popen(
            [*guard, *options, "--", *launch.argv],
            stdin=channel.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=dict(launch.env),
            cwd=launch.cwd,
            start_new_session=True,  # Ctrl-C in the terminal is Tandem's to answer, not the engine's
        )
    finally:
        os.close(output)
