"""Runs: answers and pictures in the making, each owned by one thread of this process.

The page starts a run, shows snapshots of it and may stop it; it never holds one open. So a click, a
reload or a second tab changes nothing. Nothing here or below may touch Streamlit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from chat_app.catalog import Progress
from chat_app.client import Line, failure_of
from chat_app.records import Failure, Message, Picture, State, Usage
from chat_app.store import Store

SAVE_EVERY_S = 0.25


class AlreadyRunning(Exception):
    def __init__(self, chat_id: str) -> None:
        super().__init__(f"chat {chat_id} is still being answered; stop that run or wait for its end")


@dataclass(frozen=True)
class Snapshot:
    message: Message
    progress: Progress | None


class Run:
    """One assistant message being made. Its thread writes, every other thread takes snapshots."""

    def __init__(self, message: Message, store: Store) -> None:
        self.id = message.id
        self.chat_id = message.chat_id
        self.kind = message.kind
        self.line = Line()
        self.request_id: str | None = None
        self._store = store
        self._lock = threading.Lock()
        self._message = message
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._progress: Progress | None = None
        self._began = time.monotonic()
        self._saved = 0.0
        self.stopping = threading.Event()
        self.spoken = threading.Event()  # set by the first token, or by the end
        self.finished = threading.Event()  # saved, and its chat is free for the next run

    # for every thread

    def snapshot(self) -> Snapshot:
        with self._lock:
            return Snapshot(self._current(), self._progress)

    def stop(self) -> None:
        """Hang up on the gateway. The run ends by itself a moment later, as stopped."""
        with self._lock:
            if self._message.state.active:
                self._message = replace(self._message, state=State.CANCELLING)
        self.stopping.set()
        self.line.cut()

    # for the thread that owns the run

    def show(self, progress: Progress, state: State) -> None:
        """Say what is being waited for. Too late once the first token is there."""
        with self._lock:
            if self._message.state is not State.CANCELLING and not (self.kind == "text" and self.spoken.is_set()):
                self._progress = progress
                self._message = replace(self._message, state=state)

    def think(self, piece: str) -> None:
        with self._lock:
            self._first_token()
            self._reasoning.append(piece)
        self._save_now_and_then()

    def say(self, piece: str) -> None:
        with self._lock:
            self._first_token()
            if self._reasoning and not self._text:
                self._timings(thought_s=self._elapsed() - (self._message.timings.first_token_s or 0.0))
            self._text.append(piece)
        self._save_now_and_then()

    def add_picture(self, picture: Picture) -> None:
        with self._lock:
            self._message = replace(self._message, pictures=(*self._message.pictures, picture))
        self._save()

    def note(self, *, usage: Usage | None = None, finish_reason: str | None = None) -> None:
        with self._lock:
            message = self._message
            self._message = replace(message, usage=usage or message.usage, finish_reason=finish_reason or message.finish_reason)

    def finish(self, state: State, failure: Failure | None = None) -> None:
        with self._lock:
            self._timings(total_s=self._elapsed())
            if self._reasoning and not self._text and self._message.timings.thought_s is None:
                self._timings(thought_s=self._elapsed() - (self._message.timings.first_token_s or 0.0))
            self._message = replace(self._message, state=state, failure=failure)
            self._progress = None
        self.spoken.set()
        self._save()

    def _first_token(self) -> None:
        if not self.spoken.is_set():
            self.spoken.set()
            self._progress = None
            self._timings(first_token_s=self._elapsed())
            if self._message.state is not State.CANCELLING:
                self._message = replace(self._message, state=State.RUNNING)

    def _timings(self, **changes: float) -> None:
        self._message = replace(self._message, timings=replace(self._message.timings, **changes))

    def _current(self) -> Message:
        return replace(self._message, text="".join(self._text), reasoning="".join(self._reasoning))

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        with self._lock:
            message = self._current()
        self._store.save(message)
        self._saved = time.monotonic()


class Runs:
    """The live runs of this process, at most one in a chat."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def of_chat(self, chat_id: str) -> Run | None:
        with self._lock:
            return self._runs.get(chat_id)

    def busy_chats(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._runs)

    def start(self, create: Callable[[], Message], chat_id: str, work: Callable[[Run], None]) -> Run:
        """Store the message that `create` makes and let a thread do `work` on it. Raises AlreadyRunning."""
        with self._lock:
            if chat_id in self._runs:
                raise AlreadyRunning(chat_id)
            run = Run(create(), self._store)
            self._runs[chat_id] = run
        threading.Thread(target=self._own, args=(run, work), name=f"run-{run.id}", daemon=True).start()
        return run

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop every run and wait for their threads to have saved what they had."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.stop()
        for run in runs:
            run.finished.wait(timeout_s)

    def _own(self, run: Run, work: Callable[[Run], None]) -> None:
        state, failure = State.DONE, None
        try:
            work(run)
        except Exception as error:  # noqa: BLE001  # the last frame of the thread: whatever it is must end as a visible state
            state, failure = State.FAILED, failure_of(error, run.request_id)
        if run.stopping.is_set():
            state, failure = State.STOPPED, None
        try:
            run.finish(state, failure)
        finally:
            with self._lock:
                del self._runs[run.chat_id]
            run.finished.set()
