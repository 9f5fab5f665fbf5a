"""From a configuration to the upstream that answers: which kind, and by which way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.base import ChatUpstream
from adapters.build import chat_upstream
from adapters.errors import UpstreamError
from adapters.litellm_bridge import LitellmChat
from adapters.openai_compatible import OpenAICompatible
from config.schema import Settings
from local_models.runtime import Runtime
from tests.adapters.test_litellm_bridge import Taker, call
from tests.adapters.test_network import HOST, proxy_server
from tests.scripted_upstream import answering, scripted_upstream


def upstream_of(environ: dict[str, str] | None = None, **spec: Any) -> ChatUpstream:
    deployments = [{"upstream": "lab", "model": "anthropic/claude-sonnet-4-5"}]
    settings = Settings.model_validate({"models": [{"name": "m", "kind": "chat", "deployments": deployments}], "upstreams": {"lab": spec}})
    model = settings.models[0]
    return chat_upstream(settings, model, model.deployments[0], Runtime({}, data_dir=Path("/nonexistent")), environ or {})


def test_a_litellm_upstream_is_answered_through_litellm() -> None:
    assert isinstance(upstream_of(kind="litellm", api_key="k"), LitellmChat)
    assert isinstance(upstream_of(kind="openai", base_url="http://x/v1"), OpenAICompatible)


async def test_the_environments_proxy_is_taken_unless_the_upstream_says_otherwise() -> None:
    async with scripted_upstream(answering("hi")) as upstream, proxy_server(upstream.port) as proxy:
        environ = {"HTTP_PROXY": f"http://user:secret@127.0.0.1:{proxy.port}"}
        lab = upstream_of(environ, kind="openai", base_url=f"http://{HOST}/v1")
        await lab.stream(call(stream=True), Taker())
        lab.close()
        assert len(proxy.asked) == 1
        near = upstream_of(environ, kind="openai", base_url=upstream.base_url)
        await near.stream(call(stream=True), Taker())
        near.close()
        assert (len(proxy.asked), len(upstream.asked)) == (1, 2)


async def test_a_proxy_that_cannot_be_used_spoils_only_the_upstreams_behind_it() -> None:
    lab = upstream_of({"ALL_PROXY": "socks5://user:secret@gate:1080"}, kind="openai", base_url=f"https://{HOST}/v1")
    with pytest.raises(UpstreamError, match="upstream 'lab': ALL_PROXY must be the http:// address of a proxy") as caught:
        await lab.complete(call())
    assert (caught.value.status, caught.value.code) == (502, "upstream_misconfigured")
    assert "secret" not in caught.value.message
