"""What the terminal says, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config import loader
from config.readiness import Facts, check
from gateway import banner
from gateway.auth import KeyRing
from gateway.banner import EngineState
from gateway.startup import Choice, Keys

KEYS = Keys(KeyRing((), "hint"), "sk-1", created=False, path=Path("/d/api_key"))


def opening(profile: str, config_file: Path | None = None, facts: Facts | None = None) -> str:
    settings = loader.load(profile, None, {})
    choice = Choice(settings, "the reason", config_file)
    return "\n".join(banner.plain(banner.opening(choice, check(settings, facts or Facts()), "/d")))


def test_the_opening_says_what_was_chosen_and_what_is_missing() -> None:
    text = opening("hosted", Path("tandem.yaml"), Facts(weights={"builtin:demo-image": "present"}))
    assert "profile   hosted: the reason\n          with tandem.yaml over it\n" in text
    assert "choose another with --profile demo | gpu | laptop, or write a tandem.yaml" in text
    assert "qwen3.5-9b cannot answer yet; no API key: export OPENROUTER_API_KEY=... (all of it: tandem check)" in text
    assert "demo-image cannot" not in text


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (KEYS, "API key   in /d/api_key"),
        (Keys(KEYS.ring, "sk-1", created=True, path=Path("/d/api_key")), "API key   sk-1   (shown this once; kept in /d/api_key)"),
        (Keys(KEYS.ring, "sk-1", created=False, path=None), "API key   the value of TANDEM_API_KEY"),
    ],
)
def test_the_key_is_shown_in_full_only_when_it_is_new(keys: Keys, text: str) -> None:
    lines = banner.plain(banner.ready("127.0.0.1", "http://127.0.0.1:8000", "http://127.0.0.1:8501", keys))
    assert lines == ["API       http://127.0.0.1:8000/v1", "chat app  http://127.0.0.1:8501", text, "          Ctrl-C ends everything"]


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_an_open_chat_app_is_pointed_out(host: str, warned: bool) -> None:
    text = "\n".join(banner.plain(banner.ready(host, None, "http://x:1", None)))
    assert ("the chat app has no login" in text) is warned
    assert "no login" not in "\n".join(banner.plain(banner.ready(host, "http://x:1", None, None)))


def model(state: str, progress: float | None = None, stage: str | None = None, reason: str | None = None) -> dict[str, Any]:
    local = {"upstream": "u", "local": True, "state": state, "progress": progress, "stage": stage, "reason": reason, "jobs": None}
    hosted = {**local, "upstream": "h", "local": False, "state": "hosted"}
    return {"data": [{"id": "m", "tandem": {"deployments": [local, hosted]}}]}


def test_the_engines_are_read_from_the_list_of_models() -> None:
    states = banner.engine_states(model("starting", 0.4, "reading weights"))
    assert states == {"m on u": EngineState("starting", 0.4, "reading weights")}
    assert banner.work(states) == "m on u: loading 40% (reading weights)"
    assert banner.engine_states({"error": {"message": "no"}}) == {}


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ("stopped", EngineState("starting"), ["m on u: loading"]),
        ("starting", EngineState("starting", 0.5), []),
        ("starting", EngineState("ready"), ["m on u: ready"]),
        ("ready", EngineState("failed", reason="it ended"), ["m on u: failed: it ended"]),
        ("stopping", EngineState("stopped"), ["m on u: unloaded"]),
        ("ready", EngineState("stopping"), []),
    ],
)
def test_a_change_of_state_is_one_line(before: str, now: EngineState, lines: list[str]) -> None:
    assert banner.news({"m on u": EngineState(before)}, {"m on u": now}) == lines


def test_pictures_in_the_making_are_shown() -> None:
    drawing = EngineState("ready", jobs={"step": 3, "steps": 8, "waiting": 0})
    assert banner.work({"m on u": drawing}) == "m on u: drawing, step 3 of 8"
    waiting = EngineState("ready", jobs={"step": 3, "steps": 8, "waiting": 2})
    assert banner.work({"m on u": waiting}) == "m on u: drawing, step 3 of 8, 2 waiting"


def test_engines_that_never_ran_are_no_news() -> None:
    assert banner.news({}, {"m on u": EngineState("stopped")}) == []
    assert banner.work({"m on u": EngineState("stopped")}) is None
