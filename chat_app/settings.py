"""Where the gateway is and where this app may write.

The command line puts these three into the environment of the app; nothing else configures it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Settings:
    base_url: str
    api_key: str
    data_dir: Path

    @property
    def folder(self) -> Path:
        """The app's own part of the data directory."""
        return self.data_dir / "chat_app"


def settings_from(environ: Mapping[str, str] = os.environ) -> Settings:
    return Settings(
        base_url=environ.get("TANDEM_BASE_URL") or DEFAULT_BASE_URL,
        api_key=environ.get("TANDEM_API_KEY") or "none",
        data_dir=Path(environ.get("TANDEM_DATA_DIR") or _default_data_dir(environ)),
    )


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "tandem"
