"""A scripted gateway and an application that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chat_app.application import Application
from chat_app.records import Message
from chat_app.settings import Settings
from tests.chat_app.fake_gateway import FakeGateway


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway(pace_s=0.01) as fake:
        yield fake


@pytest.fixture
def settings(gateway: FakeGateway, tmp_path: Path) -> Settings:
    return Settings(gateway.base_url, gateway.api_key, tmp_path)


@pytest.fixture
def app(settings: Settings) -> Iterator[Application]:
    application = Application(settings)
    yield application
    application.close()


@pytest.fixture
def finish(app: Application) -> Callable[[str], Message]:
    """Wait for the run of a chat and return its last message as it was stored."""

    def wait(chat_id: str) -> Message:
        run = app.runs.of_chat(chat_id)
        assert run is None or run.finished.wait(10)
        return app.store.messages(chat_id)[-1]

    return wait
