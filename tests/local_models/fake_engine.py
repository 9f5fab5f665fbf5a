"""An engine made for the tests: starts slowly, crashes, hangs, ignores signals, leaves children behind, each when told so.

Serves GET /health without a key; GET /crash?code=N, GET /hang and GET /sick with the one it was started with. `--pids FILE`
appends the process id of itself and of every descendant, one a line, so that a test can count starts and look for survivors.
With `--vllm NAME` it is like a vLLM: its health has no body, it lists that name, makes tokens of it, and its log tells the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread


class Handler(StreamRequestHandler):
    """HTTP by hand: a third of the start-up time that http.server costs, and the tests start hundreds of these."""

    loading: dict[str, object] | None = None
    sick = False
    silent = False
    lists = ""
    first_request = "answer"
    log_of_death = ""

    def handle(self) -> None:
        _, target, _ = self.rfile.readline().decode().split()
        headers = [line.strip() for line in iter(self.rfile.readline, b"\r\n") if line]
        if self.silent:
            time.sleep(600)
        path, _, query = target.partition("?")
        if path == "/health":
            self._answer(503 if self.loading or self.sick else 200, self.loading or {"status": "ready"})
        elif f"Authorization: Bearer {os.environ.get('TANDEM_WORKER_KEY')}".encode() not in headers:
            self._answer(401, {"error": {"message": "wrong key"}})
        elif path == "/crash":
            print("RuntimeError: asked to crash", file=sys.stderr, flush=True)
            os._exit(int(query.removeprefix("code=")))
        elif path == "/sick":
            Handler.sick = True
            self._answer(200, {})
        elif path == "/v1/models" and self.lists:
            self._answer(200, {"object": "list", "data": [{"id": self.lists}]})
        elif path == "/v1/completions" and self.lists:
            self._make_a_token()
        else:
            self._answer(200, {"pid": os.getpid()})

    def _make_a_token(self) -> None:
        if self.first_request == "answer":
            self._answer(200, {"choices": [{"index": 0, "text": "!", "finish_reason": "length"}]})
            return
        print(self.log_of_death, file=sys.stderr, flush=True)
        if self.first_request == "exit":
            os._exit(0)  # as vLLM does when its engine is dead
        Handler.sick = True
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        self._answer(500, {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        self.wfile.write(f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n{json.dumps(body)}".encode())


class Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def note_pid(file: Path | None, pid: int) -> None:
    if file is not None:
        with file.open("a") as pids:
            pids.write(f"{pid}\n")


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def spawn_descendant(options: argparse.Namespace, *, own_session: bool) -> None:
    """One child that itself has a child; both sleep, and ignore SIGTERM when told so."""
    code = "import signal, subprocess, sys, time\n"
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if options.stubborn else ""
    code += "deeper = int(sys.argv[1])\n"
    code += "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', sys.argv[2], str(deeper - 1), sys.argv[2]]) if deeper else None\n"
    code += "print(child.pid if child else 0, flush=True)\n"
    code += "time.sleep(600)\n"
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, "1", code], stdout=subprocess.PIPE, start_new_session=own_session)
    note_pid(options.pids, child.pid)
    if child.stdout is not None:
        note_pid(options.pids, int(child.stdout.readline()))


def repeat(file: Path) -> None:
    with file.open() as lines:
        while True:
            line = lines.readline()
            if line.strip() == "END":
                return
            print(line, end="", flush=True)
            time.sleep(0 if line else 0.01)


def load(options: argparse.Namespace) -> None:
    for step in range(options.steps):
        Handler.loading = {"status": "loading", "progress": step / options.steps, "stage": f"step {step}"}
        time.sleep(options.load_s / options.steps)
    Handler.loading = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pids", type=Path)
    parser.add_argument("--load-s", type=float, default=0.0, help="loads this long, saying how far it is")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--bind-late-s", type=float, default=0.0, help="takes its port only then")
    parser.add_argument("--silent", action="store_true", help="takes its port, and never answers")
    parser.add_argument("--exit", type=int, help="ends at once with this code and a readable line")
    parser.add_argument("--exit-once", type=Path, help="ends as --exit does, unless this file exists; makes it")
    parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM, its descendants too")
    parser.add_argument("--descendants", choices=["group", "session"])
    parser.add_argument("--leave", action="store_true", help="ends with code 0 once its descendants run")
    parser.add_argument("--say", action="append", default=[], help="prints this; $NAME stands for a variable")
    parser.add_argument("--chatter", type=int, default=0, help="prints this many lines of 100 bytes")
    parser.add_argument("--vllm", default="", help="is like a vLLM that lists this model")
    parser.add_argument("--first-request", choices=["answer", "fail", "exit"], default="answer")
    parser.add_argument("--log-of-death", default="", help="printed when the first request is not answered")
    parser.add_argument("--log-from", type=Path, help="prints what is in this file, and what is added to it, until it says END")
    options = parser.parse_args()
    note_pid(options.pids, os.getpid())
    if options.stubborn:
        ignore_sigterm()
    for text in options.say:
        print(os.path.expandvars(text), flush=True)
    for number in range(options.chatter):
        print(f"{number:099d}", flush=True)
    if options.descendants:
        spawn_descendant(options, own_session=options.descendants == "session")
    if options.leave:
        sys.exit(0)
    if options.exit_once and not options.exit_once.exists():
        options.exit_once.touch()
        options.exit = 1
    if options.exit is not None:
        print("OSError: no weights in /nowhere", file=sys.stderr, flush=True)
        sys.exit(options.exit)
    time.sleep(options.bind_late_s)
    Handler.silent = options.silent
    Handler.lists, Handler.first_request, Handler.log_of_death = options.vllm, options.first_request, options.log_of_death
    if options.log_from:
        repeat(options.log_from)
    if options.load_s:
        Handler.loading = {"status": "loading", "progress": 0.0, "stage": "step 0"}
        Thread(target=load, args=(options,), daemon=True).start()
    Server(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
