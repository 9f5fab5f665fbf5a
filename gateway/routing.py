"""From a public model name to who answers for it.

Nothing is substituted: an unknown name is 404, a name whose deployments all lack something is 503 and says what.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adapters.base import ChatUpstream, ImageUpstream
from adapters.build import chat_upstream, image_upstream
from adapters.errors import UpstreamError
from config.schema import Deployment, ModelSpec, RoutingSpec, Settings
from gateway.breaker import Breaker
from gateway.costs import Pricing, pricing_of
from gateway.errors import unavailable, unknown_model
from gateway.retries import retry_after_s
from gateway.strategies import Choice, order
from local_models.errors import EngineError
from local_models.runtime import Runtime

AnyUpstream = TypeVar("AnyUpstream", ChatUpstream, ImageUpstream)


@dataclass(slots=True)
class Condition:
    """How a deployment does now. in_flight: attempts under way. busy_until: monotonic time to which it has asked to be spared."""

    breaker: Breaker
    in_flight: int = 0
    busy_until: float = 0.0

    def note(self, error: UpstreamError | EngineError, now: float) -> None:
        """An attempt has failed. What a client got wrong speaks for the deployment; an engine of ours has its own back-off."""
        if isinstance(error, EngineError):
            self.breaker.abandoned()
            return
        if error.status in (429, 503):
            self.busy_until = now + (retry_after_s(error.headers, 0.0) or 0.0)
        if error.status >= 500 or error.status == 408:
            self.breaker.failed(now)
        elif error.status == 429:
            self.breaker.abandoned()
        else:
            self.breaker.succeeded()


@dataclass(frozen=True, slots=True)
class Target(Generic[AnyUpstream]):
    """One deployment with the upstream that serves it. problem: why it cannot be used as configured, or None. cost: what a usage costs."""

    deployment: Deployment
    upstream: AnyUpstream
    problem: str | None
    cost: Pricing
    condition: Condition


@dataclass(frozen=True, slots=True)
class Route(Generic[AnyUpstream]):
    """One public model and its targets, as they are listed."""

    model: ModelSpec
    targets: tuple[Target[AnyUpstream], ...]
    chance: random.Random = field(default_factory=random.Random)

    @property
    def usable(self) -> list[Target[AnyUpstream]]:
        return [target for target in self.targets if target.problem is None]

    def in_turn(self, key: bytes | None, now: float) -> list[Target[AnyUpstream]]:
        """Those to try, first to last. key: what affinity follows. now: monotonic. Those that ask to be spared come last, and those

        that are left alone not at all.
        """
        ready = [t for t in self.targets if t.problem is None and not t.deployment.only_after and t.condition.breaker.allows(now)]
        if len(ready) > 1:
            choices = [Choice(f"{t.deployment.upstream}/{t.deployment.model}", t.deployment.weight, t.condition.in_flight) for t in ready]
            ready = [ready[place] for place in order(self.model.routing.strategy, choices, key, self.chance)]
            ready.sort(key=lambda target: target.condition.busy_until > now)
        return ready

    def close(self) -> None:
        for target in self.targets:
            target.upstream.close()


def another_may_help(error: UpstreamError | EngineError) -> bool:
    """Whether the next target may answer where one failed with `error`: not where the request itself is at fault."""
    return isinstance(error, EngineError) or error.fallback


class Router:
    """Every route of one configuration."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._chat: dict[str, Route[ChatUpstream]] = {}
        self._image: dict[str, Route[ImageUpstream]] = {}
        for model in settings.models:
            problems = [settings.key_problem(deployment.upstream) for deployment in model.deployments]
            costs = [pricing_of(deployment, settings.upstreams[deployment.upstream]) for deployment in model.deployments]
            if model.kind == "chat":
                chats = [chat_upstream(settings, model, deployment, runtime) for deployment in model.deployments]
                self._chat[model.name] = _route(model, chats, problems, costs)
            else:
                images = [image_upstream(deployment, runtime) for deployment in model.deployments]
                self._image[model.name] = _route(model, images, problems, costs)
        stars = [(name[:-1], route) for name, route in self._chat.items() if name.endswith("*")]
        self._stars = sorted(stars, key=lambda star: -len(star[0]))  # the longest beginning that fits

    def chat(self, name: str) -> tuple[Route[ChatUpstream], str]:
        """The route, and what a "*" in its names stands for. Raises GatewayError (404, 503)."""
        route = self._chat.get(name)
        if route is not None and not name.endswith("*"):
            return _usable(route), ""
        found = self._wildcard(name)
        if found is not None:
            return _usable(found[0]), found[1]
        raise unknown_model(name, "chat", list(self._chat), name in self._image)

    def image(self, name: str) -> Route[ImageUpstream]:
        """Raises GatewayError (404, 503)."""
        if name not in self._image:
            raise unknown_model(name, "image", list(self._image), name in self._chat)
        return _usable(self._image[name])

    def wildcard(self, name: str) -> ModelSpec | None:
        """The model whose "*" stands for the rest of this name."""
        found = self._wildcard(name)
        return found[0].model if found else None

    def _wildcard(self, name: str) -> tuple[Route[ChatUpstream], str] | None:
        if name.endswith("*") or name in self._image:
            return None
        fitting = (star for star in self._stars if name.startswith(star[0]) and name != star[0])
        prefix, route = next(fitting, ("", None))
        return (route, name[len(prefix) :]) if route else None

    def breaker(self, model: ModelSpec, place: int) -> Breaker:
        """Of one of the model's deployments."""
        route = self._chat[model.name] if model.kind == "chat" else self._image[model.name]
        return route.targets[place].condition.breaker

    def conditions(self) -> Iterator[tuple[str, Deployment, Condition]]:
        """(public model name, deployment, how it does) of every chat deployment."""
        for name, route in self._chat.items():
            for target in route.targets:
                yield name, target.deployment, target.condition

    def close(self) -> None:
        for chat_route in self._chat.values():
            chat_route.close()
        for image_route in self._image.values():
            image_route.close()


def _route(model: ModelSpec, upstreams: list[AnyUpstream], problems: list[str | None], costs: list[Pricing]) -> Route[AnyUpstream]:
    parts = zip(model.deployments, upstreams, problems, costs, strict=True)
    targets = (Target(*part, _condition(model.routing)) for part in parts)
    return Route(model, tuple(targets))


def _condition(routing: RoutingSpec) -> Condition:
    return Condition(Breaker(routing.breaker_failures, routing.breaker_open_s))


def _usable(route: Route[AnyUpstream]) -> Route[AnyUpstream]:
    if all(target.problem is not None or target.deployment.only_after for target in route.targets):
        reasons = "; ".join(f"'{target.deployment.upstream}': {target.problem}" for target in route.targets)
        raise unavailable(f"the model '{route.model.name}' has no usable deployment: {reasons}", "no_usable_deployment", None)
    return route
