"""`tandem models download` against a Hub over real HTTP: what it fetches, and what it says when it cannot."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from config.schema import Settings
from gateway import downloads
from tests.gateway.fake_hub import COMMIT, FILES, fake_hub
from tests.gateway.test_cli import tandem

CONFIG = """\
models:
  - {name: mine, kind: chat, deployments: [{upstream: demo, model: owner/name}]}
  - {name: gone, kind: chat, deployments: [{upstream: demo, model: owner/gone}]}
  - {name: odd, kind: chat, deployments: [{upstream: demo, model: not a hub id}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tandem.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("cut", [False, True])
def test_a_model_is_fetched_without_formats_that_run_code_or_double_it(folder: Path, cut: bool) -> None:
    with fake_hub(cut=cut) as hub:
        result = tandem(folder, "models", "download", "mine", HF_ENDPOINT=hub.url)
        gets = hub.gets
    assert result.returncode == 0
    snapshot = folder / ".cache" / "huggingface" / "hub" / "models--owner--name" / "snapshots" / COMMIT
    assert result.stdout.splitlines() == ["downloading owner/name", f"owner/name is in {snapshot}"]
    assert {path.name for path in snapshot.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert gets.count("model.safetensors") == (2 if cut else 1)
    assert "1. owner/name on demo (transformers): usable" in tandem(folder, "check").stdout


def test_a_second_download_fetches_only_what_is_missing(folder: Path) -> None:
    snapshot = folder / ".cache" / "huggingface" / "hub" / "models--owner--name" / "snapshots" / COMMIT
    with fake_hub() as hub:
        assert tandem(folder, "models", "download", "mine", HF_ENDPOINT=hub.url).returncode == 0
        (snapshot / "tokenizer.json").resolve().unlink()
        (snapshot / "tokenizer.json").unlink()
        hub.gets.clear()
        assert tandem(folder, "models", "download", "mine", HF_ENDPOINT=hub.url).returncode == 0
        assert hub.gets == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gone", "tandem: the Hub refuses owner/gone with status 404; check the name; a gated or private model needs HF_TOKEN"),
        ("odd", "tandem: 'not a hub id' is neither a Hub id (owner/name) nor a path (./... or /...)"),
    ],
)
def test_a_model_that_cannot_be_had(folder: Path, name: str, line: str) -> None:
    with fake_hub() as hub:
        result = tandem(folder, "models", "download", name, HF_ENDPOINT=hub.url)
    assert result.returncode == 1
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached(folder: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening
        result = tandem(folder, "models", "download", "mine", HF_ENDPOINT=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert result.returncode == 1
    assert result.stderr == "tandem: cannot reach the Hub for owner/name; check the network, then run the same command again\n"


def test_only_local_deployments_from_the_hub_are_fetched() -> None:
    deployments = [
        {"upstream": "t", "model": "owner/name"},
        {"upstream": "t", "model": "builtin:demo"},
        {"upstream": "t", "model": "/models/mine"},
        {"upstream": "r", "model": "qwen/qwen3.5-9b"},
    ]
    settings = Settings.model_validate(
        {
            "models": [{"name": "a", "kind": "chat", "deployments": deployments}],
            "upstreams": {"t": {"kind": "transformers"}, "r": {"kind": "openrouter"}},
        }
    )
    assert downloads.downloadable(settings, settings.models[0]) == ["owner/name"]
