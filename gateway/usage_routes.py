"""GET /v1/usage: what the caller's own key has used, in OpenAI's form of usage pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Literal, Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel

from gateway import usage_query
from gateway.description import errors
from gateway.errors import GatewayError, unavailable
from gateway.usage_query import UsageQuery
from gateway.usage_totals import DAY_S, Group, StoreUnavailable, Total

RETRY_AFTER_S = 5


class UsageResult(BaseModel):
    """OpenAI's fields, then ours. input_cached_tokens are part of input_tokens, reasoning_tokens of output_tokens. Times in seconds."""

    object: Literal["tandem.usage.result"] = "tandem.usage.result"
    model: str | None
    num_model_requests: int
    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    reasoning_tokens: int
    images: int
    failures: int
    client_left: int
    cost_usd: float
    unpriced_requests: int
    estimated_requests: int
    mean_first_token_s: float | None
    mean_duration_s: float | None


class UsageBucket(BaseModel):
    """From start_time on and before end_time, Unix seconds. A bucket without requests has no results."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(BaseModel):
    """All of it: there is never a next page."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool = False
    next_page: str | None = None


class Summaries(Protocol):
    """Who sums up; `UsageLedger` is one. Raises StoreUnavailable."""

    async def summary(self, since: float | None, until: float | None, by: Sequence[Group], key_id: str | None) -> list[Total]: ...


def usage_routes(usage: Summaries, key_id_of: Callable[[Request], str], now: Callable[[], float] = time.time) -> APIRouter:
    """key_id_of: the public id of the caller's key; raises GatewayError (401). now: Unix time in seconds."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/usage", openapi_extra={"parameters": usage_query.parameters()}, responses=errors(400, 401, 500, 503))
    async def retrieve_usage(request: Request) -> UsagePage:
        """What your own key has used: requests, tokens, money and times."""
        key_id = key_id_of(request)
        query = usage_query.parse(request.query_params, now())
        try:
            totals = await usage.summary(query.start_time, query.end_time, _groups(query), key_id)
        except StoreUnavailable as error:
            raise _not_now() from error
        return UsagePage(data=list(buckets(query, totals)))

    return routes


def _groups(query: UsageQuery) -> list[Group]:
    groups: list[Group] = ["model"] if query.group_by else []
    return ["day", *groups] if query.bucket_width == "1d" else groups


def _not_now() -> GatewayError:
    """Where the store is, and why it does not answer, is for the operator's log."""
    return unavailable(
        "the usage store does not answer now; ask again later, requests go on being counted", "usage_unavailable", RETRY_AFTER_S
    )


def buckets(query: UsageQuery, totals: list[Total]) -> Iterator[UsageBucket]:
    """One bucket for each day that the query touches, cut to its times, or one for all."""
    if query.bucket_width == "all":
        yield UsageBucket(start_time=query.start_time, end_time=query.end_time, results=[_result(total) for total in totals])
        return
    by_day: dict[date | None, list[Total]] = {}
    for total in totals:
        by_day.setdefault(total.day, []).append(total)
    for midnight in range(query.start_time - query.start_time % DAY_S, query.end_time, DAY_S):
        day = datetime.fromtimestamp(midnight, UTC).date()
        yield UsageBucket(
            start_time=max(midnight, query.start_time),
            end_time=min(midnight + DAY_S, query.end_time),
            results=[_result(total) for total in by_day.get(day, [])],
        )


def _result(total: Total) -> UsageResult:
    return UsageResult(
        model=total.model,
        num_model_requests=total.requests,
        input_tokens=total.prompt_tokens,
        output_tokens=total.completion_tokens,
        input_cached_tokens=total.cached_tokens,
        reasoning_tokens=total.reasoning_tokens,
        images=total.images,
        failures=total.failures,
        client_left=total.client_left,
        cost_usd=total.cost_usd,
        unpriced_requests=total.unpriced,
        estimated_requests=total.estimated,
        mean_first_token_s=total.mean_first_token_s,
        mean_duration_s=total.mean_duration_s,
    )
