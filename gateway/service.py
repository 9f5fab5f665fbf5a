"""Everything that serves, put together: engines, application, usage, budgets, and whatever watches them. Listening is not its concern."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from adapters.build import engine_specs, memory_rules
from config.hardware import find_gpus, visible_gpus
from config.schema import Settings
from gateway.app import VERSION, Gateway, create_app
from gateway.auth import KeyRing
from gateway.budgets import restore_budgets
from gateway.metrics import Writer
from gateway.observers import Observers, observers
from gateway.output import Write
from gateway.usage import UsageLedger, open_usage
from gateway.usage_routes import usage_routes
from local_models.runtime import Runtime

log = logging.getLogger("tandem.server")


class Service:
    """Made anywhere, started on the loop that serves, closed once that has ended. app: what is served."""

    def __init__(self, app: Gateway, runtime: Runtime, ledger: UsageLedger, watch: Observers) -> None:
        self.app, self.runtime, self.ledger, self.watch = app, runtime, ledger, watch

    async def start(self) -> None:
        rows = self.ledger.writer
        self.watch.start(dataclasses.replace(self.app.readings(), writers=lambda: {"usage": Writer(rows.waiting, rows.dropped)}))
        await restore_budgets(self.app.admission, self.ledger)

    def take_over(self, settings: Settings) -> None:
        """Serve with these from now on. Raises ValueError, and nothing has changed then."""
        self.app.reconfigure(settings)
        self.watch.know(settings)

    async def close(self) -> None:
        """End the engines, write down what waits to be written."""
        self.app.close()
        await self.runtime.close()
        lost = await asyncio.to_thread(self.ledger.close)
        if lost:
            log.error("the usage of %d requests is lost: the usage store did not take it in time", lost)
        await asyncio.to_thread(self.watch.close)


def service(
    settings: Settings,
    *,
    data_dir: Path,
    keys: KeyRing,
    environ: Mapping[str, str],
    write: Write | None = None,
    runtime: Runtime | None = None,
) -> Service:
    """write: takes the log's lines, as `gateway.observers.observers`. runtime: other engines than the configuration's own."""
    engines = runtime or _runtime(settings, data_dir, environ)
    ledger = open_usage(settings, data_dir)
    watch = observers(settings, environ, version=VERSION, write=write)
    routes = [watch.routes(keys.check), usage_routes(ledger, lambda request: keys.check(request.scope["headers"]).id)]
    return Service(create_app(settings, engines, keys, [ledger, *watch.sinks], routes), engines, ledger, watch)


def _runtime(settings: Settings, data_dir: Path, environ: Mapping[str, str]) -> Runtime:
    gpus = visible_gpus(find_gpus(environ), environ)
    return Runtime(engine_specs(settings), data_dir=data_dir, memory=memory_rules(settings), gpus=gpus)
