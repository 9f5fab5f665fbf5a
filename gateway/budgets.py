"""Budgets over a restart: what was spent today and this month, read from the usage store when serving begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from gateway.admission import Admission
from gateway.usage_totals import Spent, StoreUnavailable

WAIT_S = 3.0  # a store that is slower must not hold up the start
log = logging.getLogger("tandem.usage")


class Spending(Protocol):
    """Who knows; `UsageLedger` does. Raises StoreUnavailable."""

    async def spent_since(self, since: float) -> dict[str, dict[str, Spent]]: ...


async def restore_budgets(admission: Admission, spending: Spending, now: float | None = None) -> None:
    """Book it. Where the store does not answer, budgets begin at zero, and the log says so. now: Unix time in seconds."""
    date = datetime.fromtimestamp(time.time() if now is None else now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        async with asyncio.timeout(WAIT_S):
            today = await spending.spent_since(date.timestamp())
            this_month = await spending.spent_since(date.replace(day=1).timestamp())
    except (StoreUnavailable, TimeoutError) as error:
        log.warning("budgets begin at zero, the usage store does not say what was spent before: %s", error)
        return
    admission.restore(_usd(today), _usd(this_month))


def _usd(spent: Mapping[str, Mapping[str, Spent]]) -> dict[str, dict[str, float]]:
    return {key_id: {model: of_model.usd for model, of_model in models.items()} for key_id, models in spent.items()}
