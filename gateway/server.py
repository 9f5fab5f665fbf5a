"""Serving: uvicorn around the application, the runtime around uvicorn, and an orderly end.

The listening socket is given: whoever starts the gateway has bound it before anything else, so a taken port is known at once.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from config.schema import Settings
from gateway.auth import KeyRing
from gateway.client_connection import ClientConnection
from gateway.output import Write
from gateway.reloading import Reloading, Source
from gateway.service import service

ENGINES_FIRST_S = 1  # before the grace is over engines stop: what they worked on ends with an error event, before its connection is closed


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: it would raise the signal again after it has stopped."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: Settings,
    *,
    data_dir: Path,
    keys: KeyRing,
    listener: socket.socket,
    environ: Mapping[str, str],
    source: Source | None = None,
    write: Write | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve until SIGINT or SIGTERM; take the configuration over again when its file changes, and on SIGHUP. Returns the exit code.

    write: takes the log's lines, as `gateway.observers.observers`.
    """
    whole = service(settings, data_dir=data_dir, keys=keys, environ=environ, write=write)
    await whole.start()
    grace_s = settings.server.shutdown_grace_s
    config = uvicorn.Config(
        whole.app,
        loop="uvloop",
        http=ClientConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=75,
    )
    server = _Server(config)
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_stop.set)
    reloading = Reloading(source, settings, whole.take_over) if source else None
    watching = [asyncio.create_task(reloading.watch())] if reloading else []
    if reloading:
        loop.add_signal_handler(signal.SIGHUP, lambda: watching.append(asyncio.create_task(reloading.reload())))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(told_to_stop.wait())
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        gc.freeze()  # what is loaded now stays: later collections need not look at it
        on_ready()
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await asyncio.wait({serving}, timeout=grace_s - ENGINES_FIRST_S)
        await whole.runtime.close()
        await serving
    finally:
        for task in (stopping, *watching):
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await whole.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    return 0
