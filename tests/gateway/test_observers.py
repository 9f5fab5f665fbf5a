"""What watches a gateway, together: what it writes where, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from typing import Any

import pytest

from gateway import observers as composition
from gateway.auth import KeyRing
from gateway.known_names import UNKNOWN
from gateway.metrics import Readings, Writer
from gateway.observers import Observers, observers
from gateway.output import descriptor, through
from gateway.terminal import PlainTerminal, RichTerminal
from tests.gateway.live import chat_settings, image_settings, live_gateway
from tests.gateway.records import answered

LONG_S = 20


def watching(lines: list[str], **log: Any) -> Observers:
    return observers(chat_settings("http://127.0.0.1:9/v1", log=log), {}, version="1", write=lines.append)


def feed(watch: Observers) -> None:
    for sink in watch.sinks:
        sink(answered())


def test_each_request_gets_one_line_unless_the_configuration_says_no() -> None:
    lines: list[str] = []
    watch = watching(lines, format="json")
    feed(watch)
    feed(watch)
    watch.close()
    assert [json.loads(line)["logger"] for line in "".join(lines).splitlines()] == ["tandem.access"] * 2
    lines.clear()
    silent = watching(lines, access=False)
    feed(silent)
    silent.close()
    assert lines == []


def test_lines_of_both_logs_keep_their_order() -> None:
    lines: list[str] = []
    watch = watching(lines, format="json")
    before = logging.getLogger("tandem").level, list(logging.getLogger().handlers)

    async def live() -> None:
        watch.start()
        logging.getLogger("tandem.gateway").info("first")
        feed(watch)
        logging.getLogger("tandem.gateway").warning("third")

    asyncio.run(live())
    watch.close()
    watch.close()
    assert [json.loads(line)["message"] for line in "".join(lines).splitlines()] == ["first", "200 /v1/chat/completions", "third"]
    assert (logging.getLogger("tandem").level, logging.getLogger().handlers) == before


@pytest.mark.parametrize("is_terminal", [True, False])
def test_auto_is_text_on_a_terminal_and_json_anywhere_else(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    lines: list[str] = []
    monkeypatch.setattr(composition, "descriptor", lambda: lines.append)
    monkeypatch.setattr("os.isatty", lambda number: is_terminal)
    watch = observers(chat_settings("http://127.0.0.1:9/v1"), {}, version="1")
    feed(watch)
    watch.close()
    (line,) = lines
    assert line.startswith("{") is not is_terminal
    assert line.endswith("\n")


def test_a_pipe_that_nobody_reads_delays_nobody() -> None:
    reading, writing = os.pipe()
    watch = observers(chat_settings("http://127.0.0.1:9/v1", log={"format": "json"}), {}, version="1", write=descriptor(writing))
    done = threading.Event()

    def many() -> None:
        for _ in range(30_000):
            feed(watch)
        done.set()

    thread = threading.Thread(target=many)
    thread.start()
    assert done.wait(LONG_S)
    thread.join()
    log = watch._writers()["log"]
    assert log.waiting <= composition.LOG_LIMIT
    assert log.dropped >= 30_000 - composition.LOG_LIMIT - 1000  # a pipe holds 64 KiB, and a batch is under way
    os.close(reading)
    watch.close()
    assert watch._writers()["log"].waiting == 0
    os.close(writing)


def test_a_descriptor_takes_everything_even_in_pieces_and_without_blocking() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "ä" * 200_000 + "\n"
    received = bytearray()

    def read() -> None:
        while piece := os.read(reading, 10_000):
            received.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    descriptor(writing)(text)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert received.decode() == text


async def test_metrics_show_the_backlogs_and_the_lag_beside_other_readings() -> None:
    watch = watching([])
    watch.start(Readings(writers=lambda: {"usage": Writer(1, 2)}))
    async with live_gateway(image_settings(), routes=[watch.routes(KeyRing.of(["sk-test"], "").check)]) as live, live.http() as http:
        text = (await http.get("/metrics")).text
    watch.close()
    for name in ("usage", "log"):
        assert f'tandem_backlog_dropped_total{{writer="{name}"}}' in text
    assert "tandem_event_loop_lag_seconds 0" in text


@pytest.mark.parametrize(("open_to_all", "status"), [(False, 401), (True, 200)])
async def test_the_configuration_says_whether_metrics_need_a_key(open_to_all: bool, status: int) -> None:
    settings = chat_settings("http://127.0.0.1:9/v1", server={"metrics_without_key": open_to_all})
    watch = observers(settings, {}, version="1", write=lambda text: None)
    async with live_gateway(settings, routes=[watch.routes(KeyRing.of(["sk-test"], "").check)]) as live, live.http(None) as http:
        assert (await http.get("/metrics")).status_code == status
    watch.close()


async def test_after_closing_no_task_thread_or_timer_is_left() -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    watch = watching([])
    watch.start()
    assert set(threading.enumerate()) - threads
    watch.close()
    assert asyncio.all_tasks() == tasks
    assert set(threading.enumerate()) == threads


async def test_a_new_configuration_reaches_lines_and_labels() -> None:
    lines: list[str] = []
    watch = watching(lines, format="json")
    watch.know(image_settings())
    for sink in watch.sinks:
        sink(answered(model="draw"))
        sink(answered(model="gone"))
    watch.close()
    assert [json.loads(line)["model"] for line in "".join(lines).splitlines()] == ["draw", UNKNOWN]
    text, _ = await watch.metrics.exposition("")
    assert 'model="draw"' in text.decode()


def test_on_a_terminal_that_moves_lines_go_through_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.isatty", lambda number: number == 2)
    write = through(RichTerminal())
    assert write is not None
    watch = observers(chat_settings("http://127.0.0.1:9/v1"), {}, version="1", write=write)
    feed(watch)
    feed(watch)
    watch.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("200  /v1/chat/completions  m (up0)" in line for line in lines)


@pytest.mark.parametrize(("kind", "is_terminal"), [(PlainTerminal, True), (RichTerminal, False)])
def test_otherwise_they_go_to_standard_error(
    kind: type[PlainTerminal | RichTerminal], is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda number: is_terminal)
    assert through(kind()) is None
