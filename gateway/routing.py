"""From a public model name to who answers for it, in order.

Nothing is substituted: an unknown name is 404, a name whose deployments all lack something is 503 and says what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from adapters.base import ChatUpstream, ImageUpstream
from adapters.build import chat_upstream, image_upstream
from adapters.errors import UpstreamError
from config.schema import Deployment, ModelSpec, Settings
from gateway.errors import GatewayError, unavailable, unknown_model
from local_models.errors import EngineError
from local_models.runtime import Runtime

AnyUpstream = TypeVar("AnyUpstream", ChatUpstream, ImageUpstream)


@dataclass(frozen=True, slots=True)
class Target(Generic[AnyUpstream]):
    """One deployment with the upstream that serves it. problem: why it cannot be used as configured, or None."""

    deployment: Deployment
    upstream: AnyUpstream
    problem: str | None


@dataclass(frozen=True, slots=True)
class Route(Generic[AnyUpstream]):
    """One public model and its targets in the order in which they are tried."""

    model: ModelSpec
    targets: tuple[Target[AnyUpstream], ...]

    @property
    def usable(self) -> list[Target[AnyUpstream]]:
        return [target for target in self.targets if target.problem is None]


def another_may_help(error: UpstreamError | EngineError) -> bool:
    """Whether the next target may answer where one failed with `error`: not where the request itself is at fault."""
    return isinstance(error, EngineError) or error.fallback


class Router:
    """Every route of one configuration."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self.settings = settings
        self._chat: dict[str, Route[ChatUpstream]] = {}
        self._image: dict[str, Route[ImageUpstream]] = {}
        for model in settings.models:
            problems = [settings.key_problem(deployment.upstream) for deployment in model.deployments]
            if model.kind == "chat":
                self._chat[model.name] = Route(
                    model,
                    tuple(
                        Target(deployment, chat_upstream(settings, model, deployment, runtime), problem)
                        for deployment, problem in zip(model.deployments, problems, strict=True)
                    ),
                )
            else:
                self._image[model.name] = Route(
                    model,
                    tuple(
                        Target(deployment, image_upstream(deployment, runtime), problem)
                        for deployment, problem in zip(model.deployments, problems, strict=True)
                    ),
                )

    def chat(self, name: str) -> Route[ChatUpstream]:
        """Raises GatewayError (404, 503)."""
        route = self._chat.get(name)
        if route is None:
            raise unknown_model(name, "chat", list(self._chat), name in self._image)
        return _usable(route)

    def image(self, name: str) -> Route[ImageUpstream]:
        """Raises GatewayError (404, 503)."""
        route = self._image.get(name)
        if route is None:
            raise unknown_model(name, "image", list(self._image), name in self._chat)
        return _usable(route)

    def close(self) -> None:
        for chat_route in self._chat.values():
            for chat_target in chat_route.targets:
                chat_target.upstream.close()
        for image_route in self._image.values():
            for image_target in image_route.targets:
                image_target.upstream.close()


def _usable(route: Route[AnyUpstream]) -> Route[AnyUpstream]:
    if not route.usable:
        raise _no_usable_deployment(route)
    return route


def _no_usable_deployment(route: Route[AnyUpstream]) -> GatewayError:
    reasons = "; ".join(f"'{target.deployment.upstream}': {target.problem}" for target in route.targets)
    return unavailable(f"the model '{route.model.name}' has no usable deployment: {reasons}", "no_usable_deployment", None)
