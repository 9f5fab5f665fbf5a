"""Errors in plain sentences: every class the SDK has."""

from __future__ import annotations

import inspect

import httpx2
import openai
import pytest

from chat_app.client import Gateway, failure_of
from chat_app.settings import Settings
from tests.chat_app.fake_gateway import FakeGateway

REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1")


STATUS_ERRORS = [one for _, one in inspect.getmembers(openai, inspect.isclass) if issubclass(one, openai.APIStatusError)]


@pytest.mark.parametrize("kind", STATUS_ERRORS)
def test_a_status_error_says_what_the_server_said(kind: type[openai.APIStatusError]) -> None:
    response = httpx2.Response(418, request=REQUEST, headers={"x-request-id": "r-1"})
    body = {"message": "the pot is a teapot", "code": "teapot"}
    if kind is openai.OAuthError:
        body |= {"error_description": "the pot is a teapot"}
        error: openai.APIStatusError = openai.OAuthError(response=response, body=body)
    else:
        error = kind("Error code: 418", response=response, body=body)
    failure = failure_of(error)
    assert (failure.message, failure.code, failure.request_id, failure.status) == ("the pot is a teapot", "teapot", "r-1", 418)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (openai.APITimeoutError(REQUEST), "timeout"),
        (openai.APIConnectionError(request=REQUEST), "connection_error"),
        (openai.APIError("in the stream", REQUEST, body={"code": "engine_died"}), "engine_died"),
        (openai.OpenAIError("no key"), "client_error"),
        (httpx2.ReadError("peer closed"), "ReadError"),
        (ValueError(), "ValueError"),
    ],
)
def test_every_other_error_has_a_sentence_and_a_code(error: Exception, code: str) -> None:
    failure = failure_of(error, "r-2")
    assert failure.code == code
    assert len(failure.message) > 5


def test_a_wrong_key_is_the_servers_word(gateway: FakeGateway, settings: Settings) -> None:
    stranger = Gateway(Settings(gateway.base_url, "wrong", settings.data_dir))
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.models()
    stranger.close()
    assert failure_of(caught.value).message == "this API key is not known; use the one printed at start"
