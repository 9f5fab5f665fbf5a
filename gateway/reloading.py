"""A changed configuration file, taken over while requests run. A file that does not hold is refused whole, and the old one stays.

Looked at once a second: that works on every file system, for editors that replace the file, and for mounted ConfigMaps.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.loader import ConfigError
from config.schema import Settings

INTERVAL_S = 1.0
log = logging.getLogger("tandem.config")

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class Source:
    """Where the configuration comes from. path: the file that is watched, or None. load: reads everything anew. Raises ConfigError."""

    path: Path | None
    load: Callable[[], Settings]
    say: Callable[[str], None] = log.warning


class Reloading:
    """take_over: serves with the new settings; raises ValueError where it cannot."""

    def __init__(self, source: Source, serving: Settings, take_over: Callable[[Settings], None]) -> None:
        self._source, self._serving, self._take_over = source, serving, take_over

    async def watch(self, interval_s: float = INTERVAL_S) -> None:
        """Until cancelled. A file that is being written is read once it has not changed for an interval."""
        if self._source.path is None:
            return
        known = seen = _stamp(self._source.path)
        while True:
            await asyncio.sleep(interval_s)
            before, seen = seen, _stamp(self._source.path)
            if seen not in (None, known) and seen == before:
                known = seen
                await self.reload()

    async def reload(self) -> None:
        """Read the configuration now and take it over, or say why not."""
        try:
            settings = await asyncio.to_thread(self._source.load)
            self._take_over(settings)
        except (ConfigError, ValueError) as error:
            self._source.say(f"the configuration is not taken over, the one before stays: {error}")
            return
        waiting = needs_restart(self._serving, settings)
        note = f"; {', '.join(waiting)} only at the next start" if waiting else ""
        self._source.say(f"the configuration is taken over ({', '.join(settings.sources)}){note}")
        self._serving = settings


def needs_restart(before: Settings, after: Settings) -> list[str]:
    """The keys that have changed and are looked at only when Tandem starts."""
    keys = {
        "server.host": (before.server.host, after.server.host),
        "server.port": (before.server.port, after.server.port),
        "server.shutdown_grace_s": (before.server.shutdown_grace_s, after.server.shutdown_grace_s),
        "chat_app.port": (before.chat_app.port, after.chat_app.port),
    }
    return [key for key, (old, new) in keys.items() if old != new]


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
