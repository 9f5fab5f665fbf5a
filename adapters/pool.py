"""The connections to one upstream address: idle ones are kept and reused, newest first.

A connection belongs to one exchange from `take` to `give_back`; the pool closes what it cannot use again.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

from adapters.connection import UpstreamConnection, open_connection
from adapters.proxies import Proxy

MAX_IDLE = 512  # connections kept open without work, per upstream address
MAX_IDLE_S = 60.0  # then it may be dead without our knowing: routers and load balancers forget a silent connection after minutes


@dataclass(slots=True)
class Pool:
    """connect_timeout_s covers name resolution, TCP, the proxy's tunnel and TLS together."""

    host: str
    port: int
    connect_timeout_s: float
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None
    _idle: list[UpstreamConnection] = field(default_factory=list)
    _open: set[UpstreamConnection] = field(default_factory=set)

    async def take(self, *, fresh: bool = False) -> UpstreamConnection:
        """An idle connection, or a new one. Raises TimeoutError, OSError."""
        self._drop_old()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            self.discard(connection)
        async with asyncio.timeout(self.connect_timeout_s):
            connection = await open_connection(self.host, self.port, tls=self.tls, on_closed=self._forget, proxy=self.proxy)
        self._open.add(connection)
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        if connection.reusable and len(self._idle) < MAX_IDLE:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            self.discard(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close at once a connection that cannot be used again."""
        self._open.discard(connection)
        connection.abort()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _drop_old(self) -> None:
        oldest = asyncio.get_running_loop().time() - MAX_IDLE_S
        while self._idle and self._idle[0].idle_since < oldest:
            self.discard(self._idle.pop(0))

    def _forget(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
