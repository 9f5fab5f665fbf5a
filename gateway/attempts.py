"""One request's attempts: deployment after deployment, and again after a wait, until one answers or nothing more may help.

The order and the waits are decided in `strategies`, `breaker` and `retries`; here they are carried out. Once content is out
(`begun`) the first failure is the last.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from adapters.base import ChatUpstream
from adapters.errors import UpstreamError
from gateway.errors import GatewayError, to_gateway_error, unavailable
from gateway.record import Attempt, RequestRecord
from gateway.retries import retry_after_s, wait_before_retry
from gateway.routing import Route, Target, another_may_help
from local_models.errors import EngineError

Result = TypeVar("Result")
Failure = UpstreamError | EngineError
log = logging.getLogger("tandem.chat")


@dataclass(slots=True)
class Attempts:
    """See the module. targets: in the order in which they are tried. sdk_retries: how often the client has tried by itself before.

    patience_s: how long the client waits, from now on.
    """

    route: Route[ChatUpstream]
    targets: Sequence[Target[ChatUpstream]]
    record: RequestRecord
    sdk_retries: int = 0
    patience_s: float = math.inf
    last: Target[ChatUpstream] | None = None  # the one asked last: that which answered, if any did
    _begun_at: float = field(default_factory=time.monotonic)
    _asked_at: float = 0.0
    _made: int = 0
    _retries: int = 0
    _waited_s: float = 0.0
    _errors: list[str] = field(default_factory=list)
    _refused: set[str] = field(default_factory=set)  # codes for which the deployments that are there for them have been tried

    async def first_answer(self, ask: Callable[[Target[ChatUpstream]], Awaitable[Result]], begun: Callable[[], bool]) -> Result:
        """What `ask` returns for the first target that answers. Raises GatewayError, the last failure, which names those before it."""
        waiting = list(self.targets)
        retry_at: list[tuple[float, Target[ChatUpstream]]] = []  # (monotonic time, target)
        while True:
            if not waiting:
                waiting = [await self._next_retry(retry_at)]
            target = waiting.pop(0)
            try:
                return await self._ask(target, ask)
            except (UpstreamError, EngineError) as error:
                if begun():
                    raise to_gateway_error(error) from error
                special = self._there_for(error)
                if special:
                    waiting = special
                elif not another_may_help(error):
                    raise to_gateway_error(error) from error
                else:
                    self._plan_retry(error, target, retry_at)
                if self._is_over(waiting, retry_at):
                    raise self._last(error) from error
                self._errors.append(str(error))
                log.warning(
                    "request_id=%s model=%s upstream=%s failed, trying on: %s",
                    self.record.request_id,
                    self.route.model.name,
                    target.deployment.upstream,
                    error,
                )

    async def _ask(self, target: Target[ChatUpstream], ask: Callable[[Target[ChatUpstream]], Awaitable[Result]]) -> Result:
        """One attempt, counted wherever attempts are counted."""
        condition, started = target.condition, time.monotonic()
        self.last, self._asked_at = target, started
        self._made += 1
        condition.in_flight += 1
        condition.breaker.begin(started)
        error_code: str | None = "cancelled"
        try:
            result = await ask(target)
        except (UpstreamError, EngineError) as error:
            error_code = to_gateway_error(error).code
            condition.note(error, time.monotonic())
            raise
        except BaseException:
            condition.breaker.abandoned()
            raise
        else:
            error_code = None
            condition.breaker.succeeded()
            return result
        finally:
            condition.in_flight -= 1
            spent_s = time.monotonic() - started
            self.record.upstream_s += spent_s
            self.record.attempts.append(Attempt(target.deployment.upstream, target.deployment.model, spent_s, error_code))

    def waited_s(self, now: float) -> float:
        """For upstreams and engines so far, in seconds; while one is being asked."""
        return self.record.upstream_s + now - self._asked_at

    def _there_for(self, error: Failure) -> list[Target[ChatUpstream]]:
        """The deployments that are used only after such an error; once."""
        reason = error.refusal if isinstance(error, UpstreamError) else None
        if reason is None or reason in self._refused:
            return []
        self._refused.add(reason)
        return [target for target in self.route.usable if reason in target.deployment.only_after]

    def _plan_retry(self, error: Failure, target: Target[ChatUpstream], retry_at: list[tuple[float, Target[ChatUpstream]]]) -> None:
        wait_s = None if self.sdk_retries else wait_before_retry(error, self._retries, self.route.chance, time.time())
        if wait_s is None or not target.condition.breaker.allows(time.monotonic()):
            return
        if time.monotonic() + wait_s >= self._begun_at + self.patience_s:
            return  # nobody would be there for the answer
        if self._waited_s + wait_s <= self.route.model.routing.max_wait_s:
            retry_at.append((time.monotonic() + wait_s, target))

    async def _next_retry(self, retry_at: list[tuple[float, Target[ChatUpstream]]]) -> Target[ChatUpstream]:
        """Wait for the first of them."""
        when, target = min(retry_at, key=lambda planned: planned[0])
        retry_at.remove((when, target))
        wait_s = max(0.0, when - time.monotonic())
        self._waited_s += wait_s
        self._retries += 1
        await asyncio.sleep(wait_s)
        return target

    def _is_over(self, waiting: Sequence[Target[ChatUpstream]], retry_at: Sequence[tuple[float, Target[ChatUpstream]]]) -> bool:
        if self._made >= self.route.model.routing.max_attempts:
            return True
        if waiting:
            return False
        left_s = self.route.model.routing.max_wait_s - self._waited_s
        return not any(when - time.monotonic() <= left_s for when, _ in retry_at)

    def _last(self, error: Failure) -> GatewayError:
        shown = to_gateway_error(error)
        if self._errors:
            shown.message = f"{shown.message} (tried before: {'; '.join(self._errors)})"
            if self._retries or retry_after_s(shown.headers, time.time()) is None:
                shown.headers = shown.headers | {b"x-should-retry": b"false"}  # the SDK's retries would multiply ours
        return shown


def resting(route: Route[ChatUpstream], now: float) -> GatewayError:
    """Every usable deployment of the model is left alone for the moment."""
    targets = [target for target in route.usable if not target.deployment.only_after]
    until_s = min(target.condition.breaker.wait_s(now) for target in targets)
    names = ", ".join(f"'{target.deployment.upstream}'" for target in targets)
    advice = f"and is left alone for now; try again in {max(1, math.ceil(until_s))} s"
    return unavailable(f"the model '{route.model.name}' has failed again and again on {names} {advice}", "circuit_open", until_s)
