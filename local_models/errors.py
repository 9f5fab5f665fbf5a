"""What can go wrong with an engine.

EngineError
├── UnknownEngine    no such engine is configured
├── StartFailed      it ended, or was stopped, before it served
├── StartTimeout     it did not serve in time
├── GivenUp          it crashed too often in a row, or of something that lasts
├── EngineLost       it ended while somebody used it
├── NoMemory         others hold the memory that it takes
└── RuntimeClosed    Tandem is going down
"""

from __future__ import annotations


class EngineError(Exception):
    """reason: a clause for people ("it ended with exit code 1: ..."). retry_after_s: when asking again makes sense; None: unknown."""

    summary = "engine '{engine_id}' failed"

    def __init__(self, engine_id: str, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{self.summary.format(engine_id=engine_id)}: {reason}")
        self.engine_id = engine_id
        self.reason = reason
        self.retry_after_s = retry_after_s


class UnknownEngine(EngineError):
    summary = "engine '{engine_id}' does not exist"


class StartFailed(EngineError):
    summary = "engine '{engine_id}' did not start"


class StartTimeout(EngineError):
    summary = "engine '{engine_id}' was not ready in time"


class GivenUp(EngineError):
    summary = "engine '{engine_id}' is given up for now"


class EngineLost(EngineError):
    summary = "engine '{engine_id}' ended before the answer was complete"


class NoMemory(EngineError):
    summary = "engine '{engine_id}' has no memory to run in"


class RuntimeClosed(EngineError):
    summary = "engine '{engine_id}' is not available"

    def __init__(self, engine_id: str, reason: str = "Tandem is shutting down", *, retry_after_s: float | None = None) -> None:
        super().__init__(engine_id, reason, retry_after_s=retry_after_s)
