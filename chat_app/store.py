"""Chats on disk: one SQLite file, and images as files named by the hash of their content.

Every write is one short transaction, so a run can save its partial text as it comes and a killed
app loses at most the last moment. The store never decides anything about a live run.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chat_app.records import ACTIVE_STATES, Chat, Failure, ImageRequest, Kind, Message, Picture, Role, State, Timings, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chats (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    role TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL,
    model TEXT NOT NULL, text TEXT NOT NULL, reasoning TEXT NOT NULL, details TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_of_chat ON messages (chat_id, id);
"""
_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
INTERRUPTED = Failure("The chat app was restarted before this was finished. What had arrived is kept.", code="interrupted")


class Store:
    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._images.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(folder / "chats.db", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # chats

    def create_chat(self, title: str, model: str) -> Chat:
        now = time.time()
        chat = Chat(uuid.uuid4().hex[:12], title, model, now, now)
        with self._transaction() as db:
            db.execute("INSERT INTO chats VALUES (?, ?, ?, ?, ?)", (chat.id, chat.title, chat.model, now, now))
        return chat

    def chats(self, limit: int = 200) -> list[Chat]:
        """The most recently used first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM chats ORDER BY updated_at DESC LIMIT ?", (limit,)).fetchall()
        return [Chat(**dict(row)) for row in rows]

    def chat(self, chat_id: str) -> Chat | None:
        with self._lock:
            row = self._db.execute("SELECT * FROM chats WHERE id = ?", (chat_id,)).fetchone()
        return Chat(**dict(row)) if row else None

    def rename_chat(self, chat_id: str, title: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE chats SET title = ? WHERE id = ?", (title, chat_id))

    def delete_chat(self, chat_id: str) -> None:
        """Also removes the image files that no other chat shows."""
        with self._transaction() as db:
            orphans = self._digests(chat_id=chat_id)
            db.execute("DELETE FROM chats WHERE id = ?", (chat_id,))
            orphans -= self._digests()
        for digest in orphans:
            for path in self._images.glob(f"{digest}.*"):
                path.unlink(missing_ok=True)

    # messages

    def add_message(
        self,
        chat_id: str,
        role: Role,
        kind: Kind,
        *,
        state: State = State.DONE,
        model: str = "",
        text: str = "",
        thinking: bool | None = None,
        pictures: tuple[Picture, ...] = (),
        request: ImageRequest | None = None,
    ) -> Message:
        """The stored message. Moves its chat to the top and remembers the model there."""
        now = time.time()
        message = Message(0, chat_id, role, kind, state, now, model, text, thinking=thinking, pictures=pictures, request=request)
        with self._transaction() as db:
            row = _row_of(message)
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            cursor = db.execute(f"INSERT INTO messages ({names}) VALUES ({marks})", row)
            db.execute("UPDATE chats SET updated_at = ?, model = COALESCE(NULLIF(?, ''), model) WHERE id = ?", (now, model, chat_id))
        assert cursor.lastrowid is not None
        return replace(message, id=cursor.lastrowid)

    def save(self, message: Message) -> None:
        with self._transaction() as db:
            row = _row_of(message)
            changes = ", ".join(f"{name} = :{name}" for name in row)
            db.execute(f"UPDATE messages SET {changes} WHERE id = :id", {**row, "id": message.id})

    def delete_message(self, message_id: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM messages WHERE id = ?", (message_id,))

    def messages(self, chat_id: str) -> list[Message]:
        with self._lock:
            rows = self._db.execute("SELECT * FROM messages WHERE chat_id = ? ORDER BY id", (chat_id,)).fetchall()
        return [_message_of(row) for row in rows]

    def message(self, message_id: int) -> Message | None:
        with self._lock:
            row = self._db.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone()
        return _message_of(row) if row else None

    def revision(self, chat_id: str) -> str:
        """Changes whenever a message comes, goes or changes its state: what a second tab has to watch."""
        query = "SELECT COUNT(*), MAX(id), MAX(state IN ('queued', 'loading', 'running', 'cancelling')) FROM messages WHERE chat_id = ?"
        with self._lock:
            return ":".join(map(str, self._db.execute(query, (chat_id,)).fetchone()))

    def interrupt_unfinished(self) -> int:
        """Mark what a former process of the app left unfinished as stopped. Returns how many there were."""
        marks = ", ".join("?" for _ in ACTIVE_STATES)
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM messages WHERE state IN ({marks})", tuple(ACTIVE_STATES)).fetchall()
            for row in rows:
                self.save(replace(_message_of(row), state=State.STOPPED, failure=INTERRUPTED))
        return len(rows)

    # images

    def keep_image(self, content: bytes, media_type: str, width: int, height: int) -> Picture:
        digest = hashlib.sha256(content).hexdigest()
        path = self._images / f"{digest}{_SUFFIXES[media_type]}"
        if not path.exists():
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
            partial.write_bytes(content)
            partial.replace(path)
        return Picture(digest, media_type, width, height)

    def image_path(self, picture: Picture) -> Path:
        return self._images / f"{picture.digest}{_SUFFIXES[picture.media_type]}"

    def _digests(self, chat_id: str | None = None) -> set[str]:
        where, values = ("WHERE chat_id = ?", (chat_id,)) if chat_id else ("", ())
        rows = self._db.execute(f"SELECT details FROM messages {where}", values).fetchall()
        return {picture["digest"] for row in rows for picture in json.loads(row["details"])["pictures"]}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _row_of(message: Message) -> dict[str, Any]:
    columns = {name: getattr(message, name) for name in ("chat_id", "role", "kind", "created_at", "model", "text", "reasoning")}
    details = {
        "thinking": message.thinking,
        "pictures": [asdict(picture) for picture in message.pictures],
        "request": asdict(message.request) if message.request else None,
        "usage": asdict(message.usage) if message.usage else None,
        "timings": asdict(message.timings),
        "finish_reason": message.finish_reason,
        "failure": asdict(message.failure) if message.failure else None,
    }
    return {**columns, "state": message.state.value, "details": json.dumps(details)}


def _message_of(row: sqlite3.Row) -> Message:
    details = json.loads(row["details"])
    return Message(
        **{name: row[name] for name in ("id", "chat_id", "role", "kind", "created_at", "model", "text", "reasoning")},
        state=State(row["state"]),
        thinking=details["thinking"],
        pictures=tuple(Picture(**picture) for picture in details["pictures"]),
        request=ImageRequest(**details["request"]) if details["request"] else None,
        usage=Usage(**details["usage"]) if details["usage"] else None,
        timings=Timings(**details["timings"]),
        finish_reason=details["finish_reason"],
        failure=Failure(**details["failure"]) if details["failure"] else None,
    )
