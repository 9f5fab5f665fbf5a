"""Which proxy an upstream is reached through. Pure: an address and the environment's variables in, a `Proxy` or none out.

A proxy's password goes into one header of the request to that proxy and nowhere else: never into a message, a log or a `repr`.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

DIRECT: Literal["none"] = "none"  # the setting that ignores the environment


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forward proxy that speaks HTTP. authorization: value of its Proxy-Authorization header, or None."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """Its address, fit to be shown."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def proxy_for(url: str, environ: Mapping[str, str], setting: str | None = None) -> Proxy | None:
    """The proxy for requests to `url`; None for a direct connection. Raises ValueError for an address that is no http:// proxy.

    setting: an address, DIRECT, or None for what the variables say: HTTPS_PROXY or HTTP_PROXY by the scheme of `url`, else
    ALL_PROXY, unless NO_PROXY names the host. Of two spellings the lower-case one wins, as with curl.
    """
    target = urlsplit(url)
    if setting == DIRECT or _is_loopback(target.hostname or ""):
        return None
    if setting is not None:
        return _parse(setting, "proxy")
    for name in (f"{target.scheme}_proxy", "all_proxy"):
        if given := _variable(environ, name):
            return None if _excluded(target, _variable(environ, "no_proxy")) else _parse(given, name.upper())
    return None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _excluded(target: SplitResult, no_proxy: str) -> bool:
    """Whether NO_PROXY names this host: by name or domain, with or without a port, by address or network, or all by *."""
    return any(_names(entry.strip().lower(), target) for entry in no_proxy.split(","))


def _names(entry: str, target: SplitResult) -> bool:
    host = target.hostname or ""
    if entry in ("", "*"):
        return entry == "*"
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:  # one of them is a name
        pass
    name, _, port = entry.rpartition(":") if re.fullmatch(r"[^:]+:\d+", entry) else (entry, "", "")
    if port and int(port) != (target.port or (443 if target.scheme == "https" else 80)):
        return False
    domain = name.removeprefix("*").removeprefix(".")
    return host == domain or host.endswith(f".{domain}")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(text: str, source: str) -> Proxy:
    """The address is not repeated in an error: it may hold a password."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ValueError(f"{source} must be the http:// address of a proxy, for example http://proxy.example.org:3128")
    if parts.username is None:
        return Proxy(parts.hostname, port)
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.hostname, port, f"Basic {base64.b64encode(credentials.encode()).decode()}")
