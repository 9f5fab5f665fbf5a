"""The parent of one engine: ends the engine's whole process group when Tandem goes, even by kill -9.

Standard library only, and few modules of it: run as `python -I -S nanny.py --grace S --log PATH --log-bytes N -- COMMAND...`.
Standard input is a socket whose other end Tandem keeps open. Its end of file is the only order there is ("end the engine"),
and the kernel gives it for us when Tandem dies; so an orderly stop and a crash of Tandem take the same path.
Reports go back over the same socket, one line each: `started PID`, `exited STATUS` (negative: the signal), `broken REASON`.
The socket closes when nothing of the engine is left.
"""

import os
import select
import signal
import sys
import time

CHANNEL = 0
LOG = 2
CLEANING_S = 2.0
POLL_S = 0.01
LONGEST_LINE = 16 * 1024
DRAIN_READS = 16
SECRET_ENDINGS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
SHORTEST_SECRET = 8
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Log:
    """The engine's output on file descriptor 2: whole lines, no secrets, never more than `limit` bytes over two files."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.half = max(1, limit // 2)
        self.written = 0
        self.pending = b""
        self.secrets = [
            value.encode(errors="surrogateescape")
            for name, value in os.environ.items()
            if name.upper().endswith(SECRET_ENDINGS) and len(value) >= SHORTEST_SECRET
        ]
        self.longest_secret = max(map(len, self.secrets), default=1)

    def feed(self, data: bytes) -> None:
        """Lines are held back until they end: a secret cut in two by a read would not be recognised."""
        self.pending += data
        for secret in self.secrets:
            self.pending = self.pending.replace(secret, b"***")
        end = max(self.pending.rfind(b"\n"), self.pending.rfind(b"\r")) + 1
        if end == 0 and len(self.pending) > LONGEST_LINE:
            end = len(self.pending) - self.longest_secret + 1  # what stays may be the beginning of one
        self._write(self.pending[:end])
        self.pending = self.pending[end:]

    def flush(self) -> None:
        self._write(self.pending)
        self.pending = b""

    def _write(self, data: bytes) -> None:
        try:
            while data:
                room = max(0, self.half - self.written)
                end = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
                if end == 0 and self.written:  # not one more whole line fits
                    self._turn_over()
                    continue
                data = data[os.write(LOG, data[: end or room]) :]
                self.written = os.fstat(LOG).st_size
        except OSError:
            return  # a full disk must not take the engine down

    def _turn_over(self) -> None:
        os.replace(self.path, self.path + ".1")
        fresh = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fresh, LOG)
        os.close(fresh)
        self.written = 0


def report(line: str) -> None:
    try:
        os.write(CHANNEL, line.encode() + b"\n")
    except OSError:
        return  # Tandem is gone; the end of file says so too


def adopt_orphans() -> None:
    """Descendants that lose their parent become ours, so that those which left the process group can be found (Linux)."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    except (ImportError, OSError, AttributeError):
        return  # a Python without ctypes: the group kill still works


def fork_engine(command: list[str], output: int) -> int:
    """Process id of the engine, which leads a process group of its own and gets SIGKILL when this process dies (Linux)."""
    own = os.getpid()
    caught = (*ENDING_SIGNALS, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)  # or one that comes before the child's exec is lost in our handlers
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        try:
            os.setpgid(pid, pid)
        except OSError:
            return pid  # the child did it first and is past its exec
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (*caught, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        os.setpgid(0, 0)
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != own:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        return  # nobody left in it


def exit_status(engine: int) -> int | None:
    """Exit status of the engine once it ended, else None. Reaps adopted orphans on the way.

    On Linux the engine stays a zombie until `clean_up`, so that its number cannot be given to another group meanwhile.
    """
    if not hasattr(os, "waitid"):
        pid, status = os.waitpid(engine, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    while True:
        info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        if info.si_pid == engine:
            return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        os.waitpid(info.si_pid, os.WNOHANG)


def clean_up(engine: int) -> None:
    """Kill what the engine left behind, and return when it is gone or CLEANING_S has passed."""
    kill_group(engine, signal.SIGKILL)
    give_up_at = time.monotonic() + CLEANING_S
    while time.monotonic() < give_up_at:
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            if sys.platform == "linux" or not group_exists(engine):
                return
        for orphan in own_children():
            try:
                os.kill(orphan, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(POLL_S)


def group_exists(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True


def own_children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []  # no /proc, or a kernel without this file


def read_available(descriptor: int) -> bytes | None:
    """Bytes that are there; empty at the end of file; None when there are none now."""
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def tend(engine: int, output: int, wake: int, log: Log, grace_s: float) -> int:
    """Exit status of the engine. Copies its output and passes on the order to end: SIGTERM, and SIGKILL `grace_s` later."""
    watched = {CHANNEL, output, wake}
    kill_at: float | None = None
    killed = False
    while (status := exit_status(engine)) is None:
        timeout = None if kill_at is None or killed else max(0.0, kill_at - time.monotonic())
        readable = select.select(list(watched), [], [], timeout)[0]
        end = False
        if wake in readable:
            end = any(number in ENDING_SIGNALS for number in read_available(wake) or b"")
        if CHANNEL in readable and read_available(CHANNEL) == b"":
            watched.discard(CHANNEL)
            end = True
        if output in readable:
            data = read_available(output)
            if data == b"":
                watched.discard(output)
            log.feed(data or b"")
        if end and kill_at is None:
            kill_group(engine, signal.SIGTERM)
            kill_at = time.monotonic() + grace_s
        if kill_at is not None and not killed and time.monotonic() >= kill_at:
            kill_group(engine, signal.SIGKILL)
            killed = True
    for _ in range(DRAIN_READS):  # what a pipe holds; a chatty grandchild must not keep us here
        log.feed(read_available(output) or b"")
    log.flush()
    return status


def main(arguments: list[str]) -> int:
    split = arguments.index("--")
    options = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    log = Log(options["--log"], int(options["--log-bytes"]))
    adopt_orphans()
    os.set_blocking(CHANNEL, False)
    wake, wake_end = os.pipe()
    output, output_end = os.pipe()
    for descriptor in (wake, wake_end, output):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    for number in (*ENDING_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # the number arrives in the wake pipe
    try:
        engine = fork_engine(arguments[split + 1 :], output_end)
    except OSError as error:
        report(f"broken cannot fork: {error.strerror}")
        return 1
    os.close(output_end)
    report(f"started {engine}")
    status = tend(engine, output, wake, log, float(options["--grace"]))
    report(f"exited {status}")
    clean_up(engine)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
