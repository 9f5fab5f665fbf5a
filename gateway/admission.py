"""Whether a request may run now: the limits of its API key and of its model, in money, rate and number.

All limits are checked before anything is taken; then all are taken or none. What was taken is held by an `Admitted`, whose `release`
belongs in a `finally`. One owner for each process, on one event loop: nothing here waits or touches a disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from config.schema import Limits, Settings
from gateway.api_key import ApiKey
from gateway.errors import GatewayError, forbidden
from gateway.limits import Bucket, Calendar, Refusal, Tally, calendar, duration, milliseconds
from gateway.respond import RawHeaders

Spent = Mapping[str, Mapping[str, float]]
"""US dollars by key id and model."""

_RANKS = ("rate", "concurrency", "too_large", "budget")  # of several refusals, the last here is told


class InFlight(NamedTuple):
    """Requests that run now; whoever had one keeps its place with 0."""

    by_key: dict[str, int]
    by_model: dict[str, int]


class Admission:
    """See the module. clock: Unix time in seconds."""

    def __init__(self, model_limits: Mapping[str, Limits], clock: Callable[[], float] = time.time) -> None:
        self._model_limits, self._clock = model_limits, clock
        self._today = calendar(clock())
        self._keys: dict[str, Tally] = {}
        self._models: dict[str, Tally] = {}

    def admit(self, key: ApiKey, model: str, tokens: int, asked: str | None = None) -> Admitted:
        """Take what one request needs. Raises GatewayError (403, 429), and has then taken nothing.

        model: the configured name, whose limits count. asked: the name in the request where that is another one (a wildcard's).
        tokens: of prompt and answer together, estimated; 0 where they are not counted.
        """
        if key.models is not None and not key.allows(asked or model):
            raise not_allowed(key, asked or model)
        by_key = self._keys.get(key.id)
        if by_key is None or by_key.limits is not key.limits:
            by_key = self._tally_of(key)
        by_model = self._models.get(model) or self._tally_of_model(model)
        headers: RawHeaders = []
        if by_key.limited or by_model.limited:
            self._check(by_key, by_model, tokens)
            by_key.take(tokens)
            by_model.take(tokens)
            headers = _rate_headers(by_key, by_model)
        else:
            by_key.in_flight += 1
            by_model.in_flight += 1
        return Admitted(self, by_key, by_model, tokens, headers)

    def counts_tokens(self, key: ApiKey, model: str) -> bool:
        """Whether `admit` needs to know how many a request will use."""
        limits = self._model_limits.get(model)
        return key.limits.tokens_per_minute is not None or (limits is not None and limits.tokens_per_minute is not None)

    def configure(self, model_limits: Mapping[str, Limits]) -> None:
        """Other limits of the models, from now on; what runs and what is used stays counted."""
        self._model_limits = model_limits
        now = self._clock()
        for name, tally in self._models.items():
            tally.adopt(model_limits.get(name) or Limits(), now)

    def restore(self, today: Spent, this_month: Spent) -> None:
        """Book what was spent before this process began: the money of this UTC day, and of this UTC month (which includes the day's)."""
        date = self.calendar(self._clock())
        for spent, is_today in ((today, True), (this_month, False)):
            for key_id, models in spent.items():
                for model, usd in models.items():
                    amounts = (usd, 0.0) if is_today else (0.0, usd)
                    self._key_tally(key_id).restore(*amounts, date)
                    (self._models.get(model) or self._tally_of_model(model)).restore(*amounts, date)

    def in_flight(self) -> InFlight:
        return InFlight(
            {key_id: tally.in_flight for key_id, tally in self._keys.items()},
            {model: tally.in_flight for model, tally in self._models.items()},
        )

    def calendar(self, now: float) -> Calendar:
        """The UTC day that `now` is in."""
        if not self._today.begins <= now < self._today.ends:
            self._today = calendar(now)
        return self._today

    def now(self) -> float:
        return self._clock()

    def _check(self, by_key: Tally, by_model: Tally, tokens: int) -> None:
        now = self._clock()
        today = self.calendar(now)
        of_key = by_key.refusal(tokens, now, today) if by_key.limited else None
        of_model = by_model.refusal(tokens, now, today) if by_model.limited else None
        if of_key is not None or of_model is not None:
            refusals = [refusal for refusal in (of_key, of_model) if refusal is not None]
            told = max(refusals, key=lambda refusal: (_RANKS.index(refusal.kind), refusal.wait_s))
            by_key.fill(now)
            by_model.fill(now)
            raise _refused(told, max(refusal.wait_s for refusal in refusals), _rate_headers(by_key, by_model))

    def _tally_of(self, key: ApiKey) -> Tally:
        tally = self._key_tally(key.id)
        tally.who = f"the API key '{key.name}' ({key.id})"
        tally.adopt(key.limits, self._clock())
        return tally

    def _key_tally(self, key_id: str) -> Tally:
        return self._keys.setdefault(key_id, Tally(f"the API key {key_id}"))

    def _tally_of_model(self, model: str) -> Tally:
        tally = self._models[model] = Tally(f"the model '{model}', all keys together,")
        tally.adopt(self._model_limits.get(model) or Limits(), self._clock())
        return tally


class Admitted:
    """What one request holds until it is released. headers: x-ratelimit-* as of its admission, of the key or the model, whichever leaves

    less; none where neither has a rate.
    """

    __slots__ = ("_admission", "_by_key", "_by_model", "_released", "_tokens", "headers")

    def __init__(self, admission: Admission, by_key: Tally, by_model: Tally, tokens: int, headers: RawHeaders) -> None:
        self._admission, self._by_key, self._by_model, self._tokens, self._released = admission, by_key, by_model, tokens, False
        self.headers = headers

    def release(self, tokens: int | None, cost_usd: float | None) -> None:
        """Give back the place of this request and book what it really used. Only the first call counts.

        tokens: of prompt and answer; None: not known, the estimate stands. cost_usd: None: nothing to book.
        """
        if self._released:
            return
        self._released = True
        by_key, by_model = self._by_key, self._by_model
        by_key.in_flight -= 1
        by_model.in_flight -= 1
        if tokens is not None and (by_key.tokens is not None or by_model.tokens is not None):
            now = self._admission.now()
            by_key.correct(self._tokens - tokens, now)
            by_model.correct(self._tokens - tokens, now)
        if cost_usd and cost_usd > 0:
            today = self._admission.calendar(self._admission.now())
            by_key.spend(cost_usd, today)
            by_model.spend(cost_usd, today)


def limits_of_models(settings: Settings) -> dict[str, Limits]:
    """The limits of each model in a configuration, as Admission wants them."""
    return {model.name: model.limits for model in settings.models}


def not_allowed(key: ApiKey, model: str) -> GatewayError:
    """403 for a model that this key may not use."""
    allowed = ", ".join(f"'{pattern}'" for pattern in key.models or ())
    message = f"the API key '{key.name}' ({key.id}) may not use the model '{model[:128]}'; it may use {allowed}"
    return forbidden(message, "model_not_allowed", "model")


def _refused(told: Refusal, wait_s: float, rates: RawHeaders) -> GatewayError:
    if told.kind == "budget":
        code, kind = "insufficient_quota", "insufficient_quota"  # OpenAI's own pair
    else:
        code, kind = "rate_limit_exceeded", "rate_limit_error"
    headers = dict(rates)
    if told.kind != "too_large":
        wait_ms = milliseconds(wait_s)
        headers[b"retry-after"] = b"%d" % -(-wait_ms // 1000)
        headers[b"retry-after-ms"] = b"%d" % wait_ms
    if told.kind in ("budget", "too_large"):  # asking again soon cannot help
        headers[b"x-should-retry"] = b"false"
    return GatewayError(429, told.message, code, kind, headers=headers)


def _rate_headers(by_key: Tally, by_model: Tally) -> RawHeaders:
    """As of the time to which their buckets have been filled."""
    requests = _tighter(by_key.requests, by_model.requests)
    tokens = _tighter(by_key.tokens, by_model.tokens)
    headers: RawHeaders = []
    if requests is not None:
        limit, remaining, reset = _rate(requests)
        headers += (
            (b"x-ratelimit-limit-requests", limit),
            (b"x-ratelimit-remaining-requests", remaining),
            (b"x-ratelimit-reset-requests", reset),
        )
    if tokens is not None:
        limit, remaining, reset = _rate(tokens)
        headers += (
            (b"x-ratelimit-limit-tokens", limit),
            (b"x-ratelimit-remaining-tokens", remaining),
            (b"x-ratelimit-reset-tokens", reset),
        )
    return headers


def _tighter(one: Bucket | None, other: Bucket | None) -> Bucket | None:
    """The one that holds less."""
    if one is None or other is None:
        return one or other
    return one if one.level <= other.level else other


def _rate(bucket: Bucket) -> tuple[bytes, bytes, bytes]:
    """The limit, what is left of it, and the time until all of it is there again."""
    return b"%d" % bucket.capacity, b"%d" % bucket.left(), duration(bucket.wait_s(bucket.capacity)).encode()
