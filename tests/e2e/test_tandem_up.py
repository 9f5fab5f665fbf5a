"""The whole of Tandem, started as a user starts it, with the demo models: what it says, does, survives and leaves behind."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image

from tests.e2e.tandem import KEY, Tandem, command, environment, gone, running, until

pytestmark = pytest.mark.timeout(300)
CHAT_WORKER, IMAGE_WORKER = "local_models.workers.chat_server", "local_models.workers.image_server"
QUESTION: list[Any] = [{"role": "user", "content": "What can you do?"}]
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def tandem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tandem]:
    with running(tmp_path_factory.mktemp("data"), "up", "--chat-port", "0") as up:
        yield up


def picture_of(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def test_the_banner_says_what_was_chosen_and_both_addresses_answer(tandem: Tandem) -> None:
    assert "demo: " in tandem.output
    assert "--profile" in tandem.output
    with urllib.request.urlopen(tandem.address("chat app")) as page:
        assert page.status == 200
    with urllib.request.urlopen(tandem.base_url.removesuffix("/v1") + "/readyz") as ready:
        assert ready.status == 200


def test_it_answers_streamed_and_whole(tandem: Tandem) -> None:
    with tandem.sdk() as client:
        stream = client.chat.completions.create(model="demo", messages=QUESTION, stream=True, temperature=0)
        chunks = [chunk for chunk in stream if chunk.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert len(chunks) > 3
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert chunks[0].model == whole.model == "demo"


def test_it_draws_what_is_asked_and_the_same_seed_gives_the_same_pixels(tandem: Tandem) -> None:
    with tandem.sdk() as client:
        replies = [
            client.images.generate(model="demo-image", prompt=PROMPT, size="128x128", extra_body={"seed": seed}) for seed in (3, 3, 4)
        ]
    first, again, other = (picture_of(reply.data[0].b64_json) for reply in replies if reply.data)
    assert (first.format, first.size) == ("PNG", (128, 128))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_stream_shows_each_step_of_each_picture(tandem: Tandem) -> None:
    with tandem.sdk() as client:
        stream = client.images.generate(
            model="demo-image", prompt=PROMPT, n=2, stream=True, size="64x64", extra_body={"num_inference_steps": 3}
        )
        events = [event.model_dump() for event in stream]
    steps = [(event["image_index"], event["step"]) for event in events if event["type"] == "image_generation.progress"]
    assert steps == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    pictures = [event for event in events if event["type"] == "image_generation.completed"]
    assert [event["image_index"] for event in pictures] == [0, 1]
    assert pictures[1]["seed"] == pictures[0]["seed"] + 1


def test_curl_reads_the_stream_line_by_line(tandem: Tandem) -> None:
    body = '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
    curl = ["curl", "-sN", f"{tandem.base_url}/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", body]
    out = subprocess.run(curl, check=True, capture_output=True, text=True).stdout
    frames = [frame for frame in out.strip().split("\n\n") if not frame.startswith(":")]
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames[-1] == "data: [DONE]"


def test_a_killed_worker_is_an_error_event_at_once_and_the_next_request_works(tandem: Tandem) -> None:
    with tandem.sdk() as client:
        client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=1)
        worker = tandem.worker(CHAT_WORKER)
        worker.suspend()  # so that the answer cannot be over before the kill
        stream = client.with_options(timeout=30).chat.completions.create(model="demo", messages=QUESTION, stream=True, max_tokens=1500)
        worker.resume()
        next(iter(stream))
        worker.suspend()
        worker.kill()
        with pytest.raises(openai.APIError, match="ended before the answer was complete"):
            for _ in stream:
                pass
        answer = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=5)
        assert answer.choices
    assert tandem.worker(CHAT_WORKER).pid != worker.pid


def test_a_picture_whose_client_leaves_frees_the_engine(tandem: Tandem) -> None:
    with tandem.sdk() as client:
        stream = client.images.generate(
            model="demo-image", prompt=PROMPT, n=4, size="256x256", stream=True, extra_body={"num_inference_steps": 50}
        )
        next(event for event in stream if event.model_dump()["type"] == "image_generation.progress")
        stream.close()
        reply = client.images.generate(model="demo-image", prompt=PROMPT, size="64x64", extra_body={"num_inference_steps": 1})
        assert reply.data


def test_memory_at_rest(tandem: Tandem) -> None:
    with tandem.sdk() as client:  # after use
        client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=5)
        client.images.generate(model="demo-image", prompt=PROMPT)
    megabyte = 1 << 20
    assert psutil.Process(tandem.process.pid).memory_info().rss <= 150 * megabyte
    for module in (CHAT_WORKER, IMAGE_WORKER):
        assert tandem.worker(module).memory_info().rss <= 1200 * megabyte


def test_keys_and_prompts_are_nowhere_on_disk_or_in_command_lines(tandem: Tandem) -> None:
    canary = "canary-7f3a"
    with tandem.sdk() as client:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": canary}], max_tokens=2)
        with pytest.raises(openai.AuthenticationError):
            tandem.sdk(key=f"sk-{canary}").models.list()
    for process in [psutil.Process(tandem.process.pid), *tandem.children()]:
        assert KEY not in " ".join(process.cmdline())
    folder = Path(tandem.process.args[tandem.process.args.index("--data-dir") + 1])  # type: ignore[index,union-attr,arg-type] # a list of str
    logs = [path for path in folder.rglob("*.log") if path.is_file()]
    assert logs
    for path in logs:
        assert canary not in path.read_text(errors="replace"), path
    assert canary not in tandem.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, "up", "--chat-port", "0") as up:
        with up.sdk() as client:
            client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=1)
        descendants = up.children()
        assert len(descendants) >= 4  # the worker, the chat app and their guardians
        os.kill(up.process.pid, number)
        code = up.process.wait(20)
        assert code == (-9 if number == signal.SIGKILL else 0)
        gone(descendants)


def test_the_first_start_makes_a_key_and_shows_it_once(tmp_path: Path) -> None:
    for first in (True, False):
        with running(tmp_path, "serve", more={"TANDEM_API_KEY": ""}) as serve:
            key = (tmp_path / "api_key").read_text().strip()
            assert (key in serve.output) is first
            with serve.sdk(key) as client:
                assert [model.id for model in client.models.list()] == ["demo", "demo-image"]


def test_what_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    def refused(*arguments: str, **more: str) -> str:
        done = subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment(more), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused("serve", "--port", port, "--data-dir", str(tmp_path / "a"))
        assert port in refused("up", "--chat-port", port, "--port", "0", "--data-dir", str(tmp_path / "b"))
    (tmp_path / "bad.yaml").write_text("modles: []\n")
    assert "bad.yaml:1" in refused("serve", "--config", "bad.yaml", "--data-dir", str(tmp_path / "c"))
    assert "nope.yaml" in refused("serve", "--config", "nope.yaml", "--data-dir", str(tmp_path / "d"))
    (tmp_path / "file").write_text("")
    assert "file" in refused("serve", "--port", "0", "--data-dir", str(tmp_path / "file"))


def test_the_port_is_free_again_after_a_kill(tmp_path: Path) -> None:
    with running(tmp_path, "serve") as serve:
        port = serve.base_url.split(":")[2].split("/")[0]
        serve.process.kill()
        serve.process.wait()
    with running(tmp_path, "serve", "--port", port) as again:
        assert again.process.poll() is None
        until(lambda: "Ctrl-C" in again.output)
