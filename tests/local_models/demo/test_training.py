"""The training scripts run from nothing to directories that load, and go on where they stopped."""

import sys
from pathlib import Path

import pytest
import torch

from local_models.demo import chat_model, chat_tokenizer, train_chat, train_extras, train_image
from local_models.demo.evaluate_chat import Chat
from local_models.demo.evaluate_image import draw, load_image
from local_models.demo.example import Example
from local_models.demo.image_model import CONTROLNET, LORA
from local_models.demo.training import Budget, Run, learning_rate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.timeout(300)
def test_demo_image_is_trained_and_what_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    for steps in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["train_image", "--work", str(work), "--steps", steps, "--out", str(out)])
        train_image.main()
        monkeypatch.setattr(sys, "argv", ["train_extras", "--work", str(work), "--steps", steps, "--out", str(out)])
        train_extras.main()
    said = capfd.readouterr().out
    for stage in ("text", "vae", "unet", "controlnet", "lora"):
        assert f"{stage}: goes on from step 1 of" in said
    pipeline = load_image(out)
    pipeline.load_lora_weights(out / LORA)
    assert draw(pipeline, ["a red circle"], seed=0)[0].size == (128, 128)
    assert {file.name for file in (out / CONTROLNET).iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.timeout(300)
def test_the_chat_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    build = chat_tokenizer.build_tokenizer
    monkeypatch.setattr(chat_tokenizer, "build_tokenizer", lambda seed: build(seed, samples=300))
    for steps in ("1", "4"):
        monkeypatch.setattr(sys, "argv", ["train_chat", "--work", str(tmp_path), "--steps", steps, "--out", str(tmp_path / "out")])
        train_chat.main()
    said = capfd.readouterr().out
    assert "sight: goes on from step 1 of" in said
    assert "talk: goes on from step 1 of" in said
    assert Chat(tmp_path / "out").answer(Example("Hello", "", ""))


def test_the_optimizer_s_parameters_come_in_the_same_order_each_time() -> None:
    """A resumed run gives each parameter the state that was its own."""
    tokenizer = chat_tokenizer.build_tokenizer(samples=50)
    for group in train_chat._groups(model := chat_model.build_model(tokenizer), train_chat.Intents()):
        places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
        known = [places[id(parameter)] for parameter in group["params"] if id(parameter) in places]
        assert known == sorted(known)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(1.0, fraction / 100) for fraction in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.1
    assert rates[100] < 0.1
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_run_ends_with_its_budget_of_steps(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1)
    run = Run("tiny", tmp_path / "run.pt", Budget(5), {"model": layer})
    assert list(run) == [0, 1, 2, 3, 4]
    again = Run("tiny", tmp_path / "run.pt", Budget(7), {"model": layer})
    assert list(again) == [5, 6]
