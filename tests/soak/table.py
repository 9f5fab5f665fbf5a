"""What the soak has found out, as one table, printed when all its tests have run (`pytest -s` shows it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """See the module."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, found: str) -> None:
        self.rows.append((what, found))

    def text(self) -> str:
        width = max((len(what) for what, _ in self.rows), default=0)
        return "\n".join(f"  {what:<{width}}  {found}" for what, found in self.rows)


def spread(values_ms: Sequence[float]) -> str:
    """p50, p99 and the largest of some times in milliseconds."""
    if not values_ms:
        return "none"
    inside = sorted(values_ms)
    p50, p99 = (inside[round(share * (len(inside) - 1))] for share in (0.5, 0.99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {inside[-1]:.2f} ms"
