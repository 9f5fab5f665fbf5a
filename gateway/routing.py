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
from gateway.errors import unavailable, unknown_model
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
            if model.kind == "chat":
                chats = [chat_upstream(settings, model, deployment, runtime) for deployment in model.deployments]
                self._chat[model.name] = _route(model, chats, problems)
            else:
                images = [image_upstream(deployment, runtime) for deployment in model.deployments]
                self._image[model.name] = _route(model, images, problems)

    def chat(self, name: str) -> Route[ChatUpstream]:
        """Raises GatewayError (404, 503)."""
        if name not in self._chat:
            raise unknown_model(name, "chat", list(self._chat), name in self._image)
        return _usable(self._chat[name])

    def image(self, name: str) -> Route[ImageUpstream]:
        """Raises GatewayError (404, 503)."""
        if name not in self._image:
            raise unknown_model(name, "image", list(self._image), name in self._chat)
        return _usable(self._image[name])

    def close(self) -> None:
        for chat_route in self._chat.values():
            chat_route.close()
        for image_route in self._image.values():
            image_route.close()


def _route(model: ModelSpec, upstreams: list[AnyUpstream], problems: list[str | None]) -> Route[AnyUpstream]:
    return Route(model, tuple(Target(*parts) for parts in zip(model.deployments, upstreams, problems, strict=True)))


def _usable(route: Route[AnyUpstream]) -> Route[AnyUpstream]:
    if not route.usable:
        reasons = "; ".join(f"'{target.deployment.upstream}': {target.problem}" for target in route.targets)
        raise unavailable(f"the model '{route.model.name}' has no usable deployment: {reasons}", "no_usable_deployment", None)
    return route
