"""The one Application of this process, for every session of the page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from chat_app.application import Application
from chat_app.settings import Settings, settings_from


def application() -> Application:
    settings = settings_from()
    return _application(settings.base_url, settings.api_key, str(settings.data_dir))


@st.cache_resource(show_spinner=False, on_release=Application.close)
def _application(base_url: str, api_key: str, data_dir: str) -> Application:
    return Application(Settings(base_url, api_key, Path(data_dir)))
