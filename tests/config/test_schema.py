"""The schema by itself: what it accepts, what it refuses, and that secrets stay out of sight."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from config.schema import ImageSpec, Settings, VllmUpstream, parse_size

CHAT: dict[str, Any] = {"name": "a", "kind": "chat", "deployments": [{"upstream": "u", "model": "m"}]}
IMAGE: dict[str, Any] = {"name": "a", "kind": "image", "deployments": [{"upstream": "d", "model": "m"}]}
UPSTREAMS: dict[str, Any] = {
    "u": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"},
    "d": {"kind": "diffusers"},
    "t": {"kind": "transformers"},
    "r": {"kind": "openrouter"},
}


def settings(*models: dict[str, Any], **upstreams: dict[str, Any]) -> Settings:
    return Settings.model_validate({"models": list(models), "upstreams": {**UPSTREAMS, **upstreams}})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({**CHAT, "deployments": [{"upstream": "x", "model": "m"}]}, "names upstream 'x', which does not exist (known: d, r, t, u)"),
        ({**CHAT, "deployments": [{"upstream": "d", "model": "m"}]}, "chat model 'a' cannot run on 'd'"),
        ({**IMAGE, "deployments": [{"upstream": "u", "model": "m"}]}, "image model 'a' needs an upstream of kind: diffusers"),
        ({**CHAT, "deployments": [{"upstream": "u", "model": "builtin:demo"}]}, "comes with Tandem's own workers"),
        ({**CHAT, "image": {}}, "'image' belongs to kind: image"),
        ({**IMAGE, "tools": True}, "'tools' belongs to kind: chat"),
        ({**IMAGE, "context_length": 5}, "'context_length' belongs to kind: chat"),
        ({**IMAGE, "limits": {"tokens_per_minute": 5}}, "'limits.tokens_per_minute' belongs to kind: chat"),
        ({**CHAT, "limits": {"requests_per_minute": 0}}, "greater than or equal to 1"),
        ({**CHAT, "limits": {"budget_usd_per_day": 0}}, "greater than 0"),
        ({**CHAT, "thinking": True, "reasoning": False}, "thinking: true needs a model that can reason"),
        ({**IMAGE, "image": {"default_size": "100x128"}}, "default_size 100x128: width 100 is not a multiple of 16"),
        ({**IMAGE, "image": {"default_size": "4096x128"}}, "default_size 4096x128: width 4096 is outside 64 to 2048"),
        ({**IMAGE, "image": {"default_size": "big"}}, "size 'big' is not WIDTHxHEIGHT"),
        ({**IMAGE, "image": {"min_side": 512, "max_side": 256}}, "min_side 512 is greater than max_side 256"),
        ({**IMAGE, "image": {"num_inference_steps": 101}}, "num_inference_steps 101 is greater than max_num_inference_steps 100"),
        ({**CHAT, "deployments": []}, "at least 1 item"),
        ({**CHAT, "name": "two words"}, "match pattern"),
        ({**CHAT, "nmae": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(model)
    assert message in str(caught.value)


def test_a_name_may_be_used_once_only() -> None:
    with pytest.raises(ValidationError, match="model name 'a' is used twice"):
        settings(CHAT, CHAT)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/v1", "must be an http:// or https:// address"),
        ("http:///v1", "must be an http:// or https:// address"),
        ("http://user:pass@host/v1", "must not hold a user or password"),
        ("http://host/v1?key=1", "must end before any"),
        ("http://host..example/v1", "the host 'host..example', which no name service knows"),
        (f"http://{'x' * 64}.example/v1", "which no name service knows"),
        ("http://xn--aü.example/v1", "which no name service knows"),
        ("http://host:66000/v1", "port that is not a number up to 65535"),
        ("http://my host/v1", "must not hold spaces"),
        ("http://host/modèles/v1", "its path must be percent-encoded"),
    ],
)
def test_a_base_url_that_cannot_work_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(CHAT, u={"kind": "openai", "base_url": address})


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("http://münchen.example:8000/v1", "http://xn--mnchen-3ya.example:8000/v1"),
        ("https://münchen.example/v1", "https://xn--mnchen-3ya.example/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://my_vllm.internal.:8000/v1", "http://my_vllm.internal.:8000/v1"),
    ],
)
def test_a_host_is_kept_by_the_name_that_goes_over_the_wire(address: str, sent: str) -> None:
    upstream = settings(CHAT, u={"kind": "openai", "base_url": address}).upstreams["u"]
    assert upstream.kind == "openai"
    assert upstream.base_url == sent


def test_a_base_url_loses_its_last_slash() -> None:
    upstream = settings(CHAT, u={"kind": "openai", "base_url": "http://host/v1/"}).upstreams["u"]
    assert upstream.kind == "openai"
    assert upstream.base_url == "http://host/v1"


def test_secrets_show_up_in_no_text() -> None:
    spec = {"kind": "openai", "base_url": "http://h/v1", "api_key": "s3cret", "headers": {"X-Key": "s3cret"}}
    local = {"kind": "transformers", "env": {"TOKEN": "s3cret"}}
    whole = settings(CHAT, u=spec, t=local)
    assert "s3cret" not in repr(whole)
    assert "s3cret" not in str(whole)
    upstream = whole.upstreams["u"]
    assert upstream.kind == "openai"
    assert upstream.api_key is not None
    assert upstream.api_key.get_secret_value() == "s3cret"


def test_an_error_does_not_show_the_secret_that_caused_it() -> None:
    with pytest.raises(ValidationError) as caught:
        settings(CHAT, u={"kind": "openai", "base_url": "http://h/v1", "api_key": ["s3cret"], "headers": "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        (["--max-model-len", 8192], ["--max-model-len", "8192"]),
        ({"max-model-len": 8192, "enforce-eager": True, "language-model-only": False}, ["--max-model-len", "8192", "--enforce-eager"]),
        ({"--gpu-memory-utilization": 0.5, "kv-cache-dtype": "fp8"}, ["--gpu-memory-utilization", "0.5", "--kv-cache-dtype", "fp8"]),
        ([], []),
    ],
)
def test_flags_may_be_a_list_or_a_mapping(args: object, flags: list[str]) -> None:
    assert VllmUpstream.model_validate({"kind": "vllm", "args": args}).args == flags


@pytest.mark.parametrize("args", ["--flag", [True], [["--a"]], 3])
def test_other_flags_are_refused(args: object) -> None:
    with pytest.raises(ValidationError):
        VllmUpstream.model_validate({"kind": "vllm", "args": args})


@pytest.mark.parametrize(("text", "size"), [("1x1", (1, 1)), ("128x64", (128, 64)), ("99999x10", (99999, 10))])
def test_a_size_is_width_and_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "128", "0x5", "128X64", "128x64x3", "-1x5", " 1x1", "1x1\n", "100000x1", "٣x٣", "auto"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not WIDTHxHEIGHT"):
        parse_size(text)


def test_a_size_problem_names_side_value_and_limit() -> None:
    spec = ImageSpec(default_size="64x64", size_multiple=32, min_side=64, max_side=256)
    assert spec.size_problem(64, 256) is None
    assert spec.size_problem(32, 64) == "width 32 is outside 64 to 256"
    assert spec.size_problem(64, 100) == "height 100 is not a multiple of 32"


def test_an_image_model_without_limits_has_the_default_ones() -> None:
    model = settings(IMAGE).model("a")
    assert model is not None
    assert model.image == ImageSpec()


def test_a_model_that_names_no_limits_has_none() -> None:
    model = settings({**CHAT, "limits": {"requests_per_minute": 5}}, t=UPSTREAMS["t"]).model("a")
    assert model is not None
    assert model.limits.model_dump(exclude_none=True) == {"requests_per_minute": 5}
    other = settings(CHAT).model("a")
    assert other is not None
    assert set(other.limits.model_dump().values()) == {None}


def test_an_unknown_name_is_no_model() -> None:
    assert settings(CHAT).model("b") is None


@pytest.mark.parametrize(
    ("upstream", "unset", "problem"),
    [
        ("u", {}, None),
        ("t", {}, None),
        ("u", {"u": "LAB_KEY"}, "LAB_KEY is not set; export LAB_KEY=..."),
        ("r", {}, "upstream 'r' has no api_key; export OPENROUTER_API_KEY=..."),
    ],
)
def test_a_missing_key_is_told_with_the_variable_that_would_hold_it(upstream: str, unset: dict[str, str], problem: str | None) -> None:
    whole = settings(CHAT).model_copy(update={"unset_keys": unset})
    assert whole.key_problem(upstream) == problem


def test_settings_cannot_be_changed() -> None:
    whole = settings(CHAT)
    with pytest.raises(ValidationError, match="frozen"):
        whole.profile = "other"


def test_the_url_of_the_usage_store_is_kept_and_shows_up_in_no_text() -> None:
    whole = Settings.model_validate({"models": [CHAT], "upstreams": UPSTREAMS, "usage": {"url": "postgresql://u:s3cret@h/n"}})
    assert "s3cret" not in repr(whole)
    assert whole.usage.url is not None
    assert whole.usage.url.get_secret_value() == "postgresql://u:s3cret@h/n"


def test_usage_is_kept_in_the_data_directory_and_for_good_by_default() -> None:
    usage = settings(CHAT).usage
    assert (usage.url, usage.queue_size, usage.retention_days) == (None, 10_000, None)


def with_memory(**memory: Any) -> Settings:
    return Settings.model_validate({"models": [CHAT], "upstreams": UPSTREAMS, "memory": memory})


def test_memory_is_given_in_bytes_or_with_a_unit() -> None:
    given = with_memory(budgets={"cuda:0": "22GiB", "cpu": 5, "cuda:1": "1.5 GiB", "mps": "8GB"}, wait_s=9).memory
    assert given.budgets == {"cuda:0": 22 * 2**30, "cpu": 5, "cuda:1": 3 * 2**29, "mps": 8 * 10**9}
    assert (given.wait_s, with_memory().memory.budgets) == (9, {})
    assert VllmUpstream.model_validate({"kind": "vllm", "memory": "18GiB"}).memory == 18 * 2**30


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ({"budgets": {"cuda": "22GiB"}}, "budgets names the device 'cuda'; known are cpu, mps, cuda:0, cuda:1 and so on"),
        ({"budgets": {"cuda:00": 1}}, "known are cpu"),
        ({"budgets": {"cpu": "much"}}, "could not parse value and unit"),
        ({"budgets": {"cpu": -1}}, "could not parse value and unit"),
        ({"wait_s": 0}, "greater than 0"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(memory: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        with_memory(**memory)
