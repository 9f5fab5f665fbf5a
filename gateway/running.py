"""The commands that stay: the API, the chat app, or both, until SIGINT or SIGTERM.

The order is fixed: whatever can be refused is refused first (configuration, data directory, ports), then the chat app starts beside
the API, and the addresses are printed once they answer. The chat app is a supervised child; it ends with us, however we end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvloop

from config.readiness import check, gather
from config.schema import Settings
from gateway import banner, startup
from gateway.banner import EngineState, Line
from gateway.output import through
from gateway.reloading import Source
from gateway.startup import CannotStart, Keys, Wishes
from gateway.terminal import Terminal, open_terminal
from local_models.errors import EngineError
from local_models.launch import BUILTIN_MODELS, PROJECT, Launch, child_environment
from local_models.process import Process, unless

CHAT_APP = PROJECT / "chat_app" / "app.py"
CHAT_START_TIMEOUT_S = 60
WATCH_INTERVAL_S = 1.0
WATCH_TIMEOUT_S = 5.0


def up(wishes: Wishes, environ: Mapping[str, str]) -> int:
    """Run the API and the chat app. Returns the exit code; raises CannotStart, ConfigError."""
    return _run_api(wishes, environ, with_chat_app=True)


def serve_only(wishes: Wishes, environ: Mapping[str, str]) -> int:
    """Run the API. Returns the exit code; raises CannotStart, ConfigError."""
    return _run_api(wishes, environ, with_chat_app=False)


def chat_only(wishes: Wishes, environ: Mapping[str, str]) -> int:
    """Run the chat app against an API that runs elsewhere. Returns the exit code; raises CannotStart, ConfigError."""
    choice = startup.choose(wishes, environ)
    server = choice.settings.server
    data_dir = startup.data_dir_of(wishes, environ)
    startup.prepare_data_dir(data_dir)
    base_url = environ.get("TANDEM_BASE_URL") or startup.url(server.host, server.port, "/v1")
    with ExitStack() as stack:
        note = stack.enter_context(startup.claimed(data_dir, "chat-app"))
        port = startup.free_port_for(server.host, choice.settings.chat_app.port, "--chat-port")
        address = startup.url(server.host, port)
        note(address)
        app = ChatApp(server.host, port, base_url, startup.keys_in(data_dir, environ).plain, data_dir, environ)
        terminal = stack.enter_context(open_terminal())
        terminal.busy("starting the chat app")
        lines = [*banner.ready(server.host, None, address, None), ("", f"it talks to the API at {base_url}")]
        return uvloop.run(_run_chat_app(app, terminal, lines))


def _run_api(wishes: Wishes, environ: Mapping[str, str], *, with_chat_app: bool) -> int:
    signal.signal(signal.SIGTERM, _leave)  # until the server has its own handler
    choice = startup.choose(wishes, environ)
    settings = choice.settings
    data_dir = startup.data_dir_of(wishes, environ)
    startup.prepare_data_dir(data_dir)
    host = settings.server.host
    with ExitStack() as stack:
        note = stack.enter_context(startup.claimed(data_dir, "api"))
        if with_chat_app:
            stack.enter_context(startup.claimed(data_dir, "chat-app"))
        listener = stack.enter_context(startup.listen(host, settings.server.port, "--port"))
        port = int(listener.getsockname()[1])
        note(startup.url(host, port))
        chat_port = startup.free_port_for(host, settings.chat_app.port, "--chat-port") if with_chat_app else None
        keys = startup.keys_in(data_dir, environ)
        app = None
        if chat_port is not None:
            app = ChatApp(host, chat_port, startup.url(host, port, "/v1"), keys.plain, data_dir, environ)
        terminal = stack.enter_context(open_terminal())
        terminal.show(banner.opening(choice, check(settings, gather(settings, BUILTIN_MODELS, environ, data_dir)), str(data_dir)))
        terminal.busy("starting the API and the chat app" if app else "starting the API")
        source = Source(choice.config_file, lambda: startup.choose(wishes, environ).settings, terminal.say)
        return uvloop.run(_serve(_Plan(settings, environ, source, data_dir, keys, listener, host, port, app, terminal)))


@dataclass(frozen=True)
class ChatApp:
    """How the chat app is run. host, port: where it listens; base_url, api_key: the API that it talks to; environ: ours."""

    host: str
    port: int
    base_url: str
    api_key: str = field(repr=False)
    data_dir: Path
    environ: Mapping[str, str] = field(repr=False)

    @property
    def address(self) -> str:
        return startup.url(self.host, self.port)

    def process(self) -> Process:
        """The supervised child, not started."""
        return Process(
            "chat-app",
            lambda port, _: self.launch(port),
            log=self.data_dir / "logs" / "chat-app.log",
            port=self.port,
            start_timeout_s=CHAT_START_TIMEOUT_S,
        )

    def launch(self, port: int) -> Launch:
        """Command line and environment."""
        flags = {
            "--server.port": str(port),
            "--server.address": self.host,
            "--server.headless": "true",
            "--server.fileWatcherType": "none",
            "--browser.gatherUsageStats": "false",
        }
        own = {
            "TANDEM_BASE_URL": self.base_url,
            "TANDEM_API_KEY": self.api_key,
            "TANDEM_DATA_DIR": str(self.data_dir),
            # streamlit puts chat_app/ on the path, not the folder above it; and never the folder that Tandem was started in
            "PYTHONPATH": str(PROJECT),
            "PYTHONSAFEPATH": "1",
        }
        return Launch(
            argv=(sys.executable, "-m", "streamlit", "run", str(CHAT_APP), *(part for flag in flags.items() for part in flag)),
            env=child_environment(self.environ, own),
            cwd=PROJECT,
            host=startup.reachable(self.host),
            ready_path="/_stcore/health",
        )


@dataclass(frozen=True)
class _Plan:
    """What `_serve` needs; everything in it has been checked."""

    settings: Settings
    environ: Mapping[str, str] = field(repr=False)
    source: Source
    data_dir: Path
    keys: Keys
    listener: socket.socket
    host: str
    port: int
    app: ChatApp | None
    terminal: Terminal


async def _serve(plan: _Plan) -> int:
    """The API until a signal ends it, the chat app beside it."""
    from gateway.server import serve

    answers = asyncio.Event()
    process = plan.app.process() if plan.app else None
    serving = asyncio.create_task(
        serve(
            plan.settings,
            data_dir=plan.data_dir,
            keys=plan.keys.ring,
            listener=plan.listener,
            environ=plan.environ,
            source=plan.source,
            write=through(plan.terminal),
            on_ready=answers.set,
        )
    )
    reporting = asyncio.create_task(_report(plan, process, answers))
    keeping = asyncio.create_task(_keep(process, plan.terminal)) if process else None
    try:
        return await serving
    finally:
        await _end(reporting)
        plan.terminal.busy(None)
        if process is not None and keeping is not None:
            await process.close()
            await _end(keeping)


async def _run_chat_app(app: ChatApp, terminal: Terminal, lines: list[Line]) -> int:
    """The chat app until a signal ends it."""
    process = app.process()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keeping = asyncio.create_task(_keep(process, terminal))
    try:
        await unless(stop, _announce_chat_app(process, terminal, lines))
        await stop.wait()
    except EngineError as error:
        raise CannotStart(f"the chat app does not start: {error.reason}") from error
    finally:
        terminal.busy(None)
        await process.close()
        await _end(keeping)
    return 0


async def _announce_chat_app(process: Process, terminal: Terminal, lines: list[Line]) -> None:
    await process.ensure_ready()
    terminal.busy(None)
    terminal.show(lines)


async def _keep(process: Process, terminal: Terminal) -> None:
    try:
        await process.keep_ready()
    except EngineError as error:
        terminal.say(f"the chat app is given up: {error.reason}; the API goes on without it")


async def _report(plan: _Plan, process: Process | None, answers: asyncio.Event) -> None:
    """Print the addresses once all of them answer, then whatever happens to the engines."""
    await answers.wait()
    chat_address = plan.app.address if plan.app else None
    if process is not None:
        try:
            await process.ensure_ready()
        except EngineError as error:
            plan.terminal.say(f"the chat app does not start: {error.reason}")
            chat_address = None
    plan.terminal.busy(None)
    plan.terminal.show(banner.ready(plan.host, startup.url(plan.host, plan.port), chat_address, plan.keys))
    before: Mapping[str, EngineState] = {}
    while True:
        with suppress(OSError, TimeoutError, ValueError, LookupError):  # no answer this time
            now = banner.engine_states(await _ask_models(plan))
            for line in banner.news(before, now):
                plan.terminal.say(line)
            plan.terminal.busy(banner.work(now))
            before = now
        await asyncio.sleep(WATCH_INTERVAL_S)


async def _ask_models(plan: _Plan) -> object:
    """The body of GET /v1/models. HTTP/1.0: the answer ends where the connection does."""
    async with asyncio.timeout(WATCH_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(startup.reachable(plan.host), plan.port)
        try:
            writer.write(f"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer {plan.keys.plain}\r\n\r\n".encode())
            answer = await reader.read(-1)
        finally:
            writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
