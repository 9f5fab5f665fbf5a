"""`tandem engines status|load|unload`: engines looked at and controlled in the gateway that runs with this data directory.

The gateway is found by its lock and asked over HTTP with the installation's key; TANDEM_BASE_URL and TANDEM_API_KEY name another one.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.auth import ENVIRONMENT, KEY_FILE
from gateway.engine_routes import PATH
from gateway.loading import loading
from gateway.startup import CannotStart, holder_of

TIMEOUT_S = 30.0
LOOK_AGAIN_S = 1.0
EXIT_FAILED = 1


class Control:
    """The running gateway of a data directory. Making it raises CannotStart where there is none, asking where it refuses or is gone."""

    def __init__(self, data_dir: Path, environ: Mapping[str, str]) -> None:
        base = environ.get("TANDEM_BASE_URL", "").rstrip("/").removesuffix("/v1") or holder_of(data_dir, "api")
        if base is None:
            raise CannotStart(f"no gateway runs with the data directory {data_dir}; start it with `tandem up`, or name another --data-dir")
        self._base, self._key = base, _key_in(data_dir, environ)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a gateway of one's own is not behind a proxy

    def engines(self) -> list[dict[str, Any]]:
        """Every engine, as GET /v1/engines has them."""
        found: list[dict[str, Any]] = self._ask("GET", PATH)["data"]
        return found

    def load(self, engine_id: str) -> dict[str, Any]:
        """Begin to start it; the engine as it is then."""
        return self._ask("POST", f"{PATH}/{quote(engine_id)}/load")

    def unload(self, engine_id: str, drain_s: float) -> dict[str, Any]:
        """Return when it is gone; the engine as it is then."""
        return self._ask("POST", f"{PATH}/{quote(engine_id)}/unload?drain_s={drain_s:g}", drain_s + TIMEOUT_S)

    def _ask(self, method: str, path: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        request = urllib.request.Request(self._base + path, method=method, headers={"Authorization": f"Bearer {self._key}"})
        try:
            with self._opener.open(request, timeout=timeout_s) as reply:
                document: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            raise CannotStart(_message(error)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise CannotStart(f"the gateway at {self._base} does not answer: {reason}") from error
        return document


def status(control: Control, *, as_json: bool) -> int:
    """Print every engine. Raises CannotStart."""
    engines = control.engines()
    for line in [json.dumps(engines, indent=1)] if as_json else table(engines):
        print(line)
    return 0


def load(control: Control, engine_id: str, *, wait: bool) -> int:
    """Start an engine, and print how far it is until it is ready. Returns 1 if it fails; raises CannotStart."""
    engine = control.load(engine_id)
    told = ""
    while engine["state"] == "starting":
        if (news := loading(engine["progress"], engine["stage"])) != told:
            told = news
            print(f"{engine_id}: {news}", flush=True)
        if not wait:
            return 0
        time.sleep(LOOK_AGAIN_S)
        engine = _one(control, engine_id)
    reason = f": {engine['reason']}" if engine["reason"] else ""
    print(f"{engine_id}: {engine['state']}{reason}")
    return 0 if engine["state"] == "ready" else EXIT_FAILED


def unload(control: Control, engine_id: str, drain_s: float) -> int:
    """Stop an engine once nobody uses it. Raises CannotStart."""
    engine = control.unload(engine_id, drain_s)
    print(f"{engine_id}: {engine['state']}")
    return 0


def table(engines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each engine, columns aligned, and below it what it loads or why it failed."""
    if not engines:
        yield "the configuration has no engines on this machine"
        return
    rows = [("ID", "KIND", "STATE", "REQUESTS", "RESTARTS", "PROCESS"), *(_row(engine) for engine in engines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    details = ["", *(_detail(engine) for engine in engines)]
    for row, detail in zip(rows, details, strict=True):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        if detail:
            yield f"  {detail}"


def _row(engine: Mapping[str, Any]) -> tuple[str, ...]:
    process = "" if engine["pid"] is None else str(engine["pid"])
    return engine["id"], engine["kind"], engine["state"], str(engine["leases"]), str(engine["restarts"]), process


def _detail(engine: Mapping[str, Any]) -> str:
    if engine["state"] == "starting":
        return loading(engine["progress"], engine["stage"])
    return engine["reason"] or ""


def _one(control: Control, engine_id: str) -> dict[str, Any]:
    for engine in control.engines():
        if engine["id"] == engine_id:
            return engine
    raise CannotStart(f"the engine '{engine_id}' has left the configuration")


def _key_in(data_dir: Path, environ: Mapping[str, str]) -> str:
    given = environ.get(ENVIRONMENT, "").strip()
    if given:
        return given
    path = data_dir / KEY_FILE
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"cannot read the API key in {path}; set {ENVIRONMENT} to one that may manage engines") from error


def _message(error: urllib.error.HTTPError) -> str:
    try:
        message = json.load(error)["error"]["message"]
    except (OSError, ValueError, LookupError, TypeError):
        message = f"the gateway answered {error.code} {error.reason}"
    return str(message)
