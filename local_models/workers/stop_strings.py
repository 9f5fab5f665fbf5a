"""Where an answer ends because the client said so."""

from __future__ import annotations

from collections.abc import Sequence

from local_models.workers.qwen_output import first_tag, held_back


class StopStrings:
    """Feed content, get what may be shown: text up to the first stop string, and nothing that may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self.hit = False

    def feed(self, text: str) -> str:
        if self.hit:
            return ""
        self._pending += text
        if found := first_tag(self._pending, self._stops):
            self.hit = True
            return self._take(found[0])
        return self._take(len(self._pending) - held_back(self._pending, self._stops))

    def finish(self) -> str:
        return "" if self.hit else self._take(len(self._pending))

    def _take(self, length: int) -> str:
        shown, self._pending = self._pending[:length], self._pending[length:]
        return shown
