"""What `tandem check` finds missing, as a table over made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.environments import EngineDevice, Environment, Manifest
from config.hardware import Gpu
from config.readiness import Facts, check, gather
from config.schema import Settings

GPU = Gpu(0, "GPU", 24 * 2**30, 24 * 2**30)
UPSTREAMS = {
    "vllm": {"kind": "vllm"},
    "vllm-cpu": {"kind": "vllm", "device": "cpu"},
    "vllm-there": {"kind": "vllm", "python": "/opt/v/bin/python"},
    "vllm-2nd": {"kind": "vllm", "device": "cuda:1"},
    "worker": {"kind": "transformers"},
    "worker-gpu": {"kind": "transformers", "device": "cuda"},
    "router": {"kind": "openrouter"},
    "lab": {"kind": "openai", "base_url": "http://x/v1"},
    "private": {"kind": "openai", "base_url": "https://x/v1", "ca_file": "/etc/ca.pem", "client_cert": "/etc/me.pem"},
    "anthropic": {"kind": "litellm"},
}


def settings(upstream: str, model: str = "owner/name", unset: dict[str, str] | None = None) -> Settings:
    return Settings.model_validate(
        {
            "models": [{"name": "a", "kind": "chat", "deployments": [{"upstream": upstream, "model": model}]}],
            "upstreams": UPSTREAMS,
            "unset_keys": unset or {},
        }
    )


ALL = Facts(gpus=(GPU,), engines={name: True for name in UPSTREAMS}, weights={"owner/name": "present"})


@pytest.mark.parametrize("upstream", ["vllm", "vllm-cpu", "vllm-there", "worker", "worker-gpu", "lab", "private", "anthropic"])
def test_nothing_is_missing_where_everything_is_there(upstream: str) -> None:
    report = check(settings(upstream), ALL)
    assert report.unusable == ()
    assert report.models[0].deployments[0].usable


@pytest.mark.parametrize(
    ("upstream", "facts", "missing"),
    [
        ("vllm", Facts((), {"vllm": True}, ALL.weights), ["no NVIDIA GPU"]),
        ("vllm-cpu", Facts((), {"vllm-cpu": True}, ALL.weights), []),
        ("vllm-2nd", ALL, ["no GPU 1"]),
        ("vllm", Facts((GPU,), {}, ALL.weights), ["vLLM is not installed"]),
        ("vllm-there", Facts((GPU,), {}, ALL.weights), ["no vLLM at /opt/v/bin/python"]),
        ("vllm", Facts((GPU,), {"vllm": True}), ["weights not downloaded"]),
        ("vllm", Facts(), ["no NVIDIA GPU", "vLLM is not installed", "weights not downloaded"]),
        ("worker", Facts(weights={"owner/name": "partial"}), ["weights only partly downloaded"]),
        ("worker", Facts(weights=ALL.weights), []),
        ("worker-gpu", Facts(weights=ALL.weights), ["no NVIDIA GPU"]),
        ("router", ALL, ["no API key"]),
        ("private", Facts(absent=frozenset({Path("/etc/me.pem")})), ["no file /etc/me.pem"]),
    ],
)
def test_each_thing_that_may_be_missing(upstream: str, facts: Facts, missing: list[str]) -> None:
    deployment = check(settings(upstream), facts).models[0].deployments[0]
    assert [item.what for item in deployment.missing] == missing
    assert all(item.remedy for item in deployment.missing)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("owner/name", "tandem models download a"),
        ("/models/mine", "put config.json or model_index.json and the .safetensors files there"),
        ("builtin:demo", "clone Tandem anew"),
    ],
)
def test_the_remedy_for_missing_weights_fits_where_they_come_from(model: str, remedy: str) -> None:
    assert check(settings("worker", model), Facts()).models[0].deployments[0].missing[0].remedy == remedy


@pytest.mark.parametrize(
    ("upstream", "remedy"),
    [
        ("vllm", "tandem engines install vllm, or set 'python' of 'vllm'"),
        ("vllm-cpu", "tandem engines install vllm --device cpu, or set 'python' of 'vllm-cpu'"),
        ("vllm-2nd", "tandem engines install vllm --device cuda, or set 'python' of 'vllm-2nd'"),
        ("vllm-there", "correct 'python' of 'vllm-there', or leave it out and run tandem engines install vllm"),
    ],
)
def test_the_remedy_for_a_missing_engine_is_the_command_that_installs_it(upstream: str, remedy: str) -> None:
    facts = Facts((GPU, GPU), weights=ALL.weights)
    assert [item.remedy.startswith(remedy) for item in check(settings(upstream), facts).models[0].deployments[0].missing] == [True]


@pytest.mark.parametrize(
    ("upstream", "device", "missing"),
    [
        ("vllm-cpu", "cpu", []),
        ("vllm-cpu", "cuda", ["vLLM is not installed"]),
        ("vllm", "cpu", []),
        ("vllm", "cuda", ["no NVIDIA GPU"]),
        ("vllm", "rocm", []),
        ("vllm-2nd", "cpu", ["no NVIDIA GPU", "vLLM is not installed"]),
        ("vllm-there", "cpu", ["no NVIDIA GPU", "no vLLM at /opt/v/bin/python"]),
    ],
)
def test_an_installed_environment_stands_in_for_the_path(upstream: str, device: EngineDevice, missing: list[str]) -> None:
    manifest = Manifest("vllm", device, "1.0", "3.11.0", "2.0", "it", "digest", 0.0, 1)
    facts = Facts(weights=ALL.weights, environments=(Environment(Path("/e"), manifest),))
    deployment = check(settings(upstream), facts).models[0].deployments[0]
    assert [item.what for item in deployment.missing] == missing


def test_a_key_names_the_variable_that_its_upstream_reads() -> None:
    deployment = check(settings("lab", unset={"lab": "LAB_KEY"}), ALL).models[0].deployments[0]
    assert [str(item) for item in deployment.missing] == ["no API key: export LAB_KEY=..."]


def test_one_usable_deployment_is_enough() -> None:
    whole = settings("vllm")
    two = [{"upstream": "vllm", "model": "owner/name"}, {"upstream": "lab", "model": "x"}]
    both = Settings.model_validate({**whole.model_dump(), "models": [{"name": "a", "kind": "chat", "deployments": two}]})
    report = check(both, Facts())
    assert [deployment.usable for deployment in report.models[0].deployments] == [False, True]
    assert report.unusable == ()


def test_gather_looks_only_for_what_is_asked(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n: > {asked}\necho '0, A, 10, 5'\n")
    smi.chmod(0o755)
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    facts = gather(settings("worker"), {}, environ, tmp_path)
    assert facts == Facts(weights={"owner/name": "absent"})
    assert not asked.exists()
    facts = gather(settings("vllm"), {}, environ, tmp_path)
    assert facts == Facts((Gpu(0, "A", 10 * 2**20, 5 * 2**20),), {"vllm": False}, {"owner/name": "absent"})
    assert gather(settings("lab"), {}, environ, tmp_path) == Facts()


def test_gather_finds_the_environments_that_tandem_installed(tmp_path: Path) -> None:
    (tmp_path / "engines" / "vllm-cpu-1.0").mkdir(parents=True)
    facts = gather(settings("vllm-cpu"), {}, {"PATH": str(tmp_path)}, tmp_path)
    assert [environment.name for environment in facts.environments] == ["vllm-cpu-1.0"]
    assert gather(settings("worker"), {}, {"PATH": str(tmp_path)}, tmp_path).environments == ()


def test_gather_looks_for_the_files_of_a_hosted_upstream() -> None:
    assert gather(settings("private"), {}, {}, Path("/none")).absent <= {Path("/etc/ca.pem"), Path("/etc/me.pem")}
    assert Path("/etc/me.pem") in gather(settings("private"), {}, {}, Path("/none")).absent
    assert gather(settings("lab"), {}, {}, Path("/none")).absent == frozenset()
