"""The image worker over real HTTP: a real process, a real (untrained) Stable Diffusion pipeline."""

from __future__ import annotations

import base64
import io
import resource
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.local_models.workers.running import RunningWorker, events

RED_CIRCLE = {"prompt": "a red circle", "n": 1, "width": 64, "height": 32, "num_inference_steps": 3, "seed": 5}
ENDLESS = {**RED_CIRCLE, "num_inference_steps": 1000}


def draw(worker: RunningWorker, **fields: Any) -> list[dict[str, Any]]:
    with worker.client.stream("POST", "/v1/images/generations", json={**RED_CIRCLE, **fields}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events(response))


def pixels(event: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))).tobytes()


def images(received: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in received if event["type"] == "image"]


def test_each_step_then_each_image_then_done(image: RunningWorker) -> None:
    received = draw(image, n=2)
    assert [event["type"] for event in received] == [*["progress"] * 3, "image", *["progress"] * 3, "image", "done"]
    assert received[1] == {"type": "progress", "image_index": 0, "step": 2, "steps": 3}
    assert received[6]["image_index"] == 1
    first, second = images(received)
    assert {key: first[key] for key in ("image_index", "seed", "width", "height")} == {
        "image_index": 0,
        "seed": 5,
        "width": 64,
        "height": 32,
    }
    assert second["seed"] == 6
    assert Image.open(io.BytesIO(base64.b64decode(first["b64_json"]))).size == (64, 32)
    assert received[-1]["duration_s"] >= first["duration_s"] > 0


def test_a_seed_fixes_every_pixel(image: RunningWorker) -> None:
    first, second = images(draw(image, n=2))
    assert pixels(images(draw(image))[0]) == pixels(first)
    assert pixels(images(draw(image, seed=6))[0]) == pixels(second)
    assert pixels(first) != pixels(second)
    unseeded = images(draw(image, seed=None))[0]
    assert pixels(images(draw(image, seed=unseeded["seed"]))[0]) == pixels(unseeded)


def test_guidance_and_negative_prompt_reach_the_pipeline(image: RunningWorker) -> None:
    plain = pixels(images(draw(image, guidance_scale=1))[0])
    assert pixels(images(draw(image, guidance_scale=9))[0]) != plain
    assert pixels(images(draw(image, guidance_scale=9, negative_prompt="blue"))[0]) != pixels(images(draw(image, guidance_scale=9))[0])


def test_a_client_that_leaves_stops_at_the_next_step_and_leaves_no_trace(image: RunningWorker) -> None:
    whole = pixels(images(draw(image))[0])
    before = image.health()["steps_done"]
    with image.client.stream("POST", "/v1/images/generations", json=ENDLESS) as response:
        received = events(response)
        assert next(received)["step"] == 1
    stopped = image.wait_for(running=0)["steps_done"]
    assert stopped - before < 100
    assert pixels(images(draw(image))[0]) == whole


def test_a_second_job_waits_and_a_waiting_one_can_leave(image: RunningWorker) -> None:
    with image.client.stream("POST", "/v1/images/generations", json=ENDLESS) as running:
        received = events(running)
        next(received)
        with pytest.raises(httpx.ReadTimeout):
            image.client.post("/v1/images/generations", json=RED_CIRCLE, timeout=httpx.Timeout(5, read=0.3))
        assert image.wait_for(queued=0)["running"] == 1
    assert images(draw(image))


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"prompt": " "}, 400, "prompt", "describe the picture"),
    ({"prompt": 5}, 400, "prompt", "a string"),
    ({"width": 60}, 400, "width", "multiple of 8"),
    ({"height": None}, 400, "height", "is missing"),
    ({"width": 100_000}, 400, "width", "from 1 to 8192"),
    ({"n": 0}, 400, "n", "from 1 to 16"),
    ({"num_inference_steps": 0}, 400, "num_inference_steps", "from 1 to 1000"),
    ({"seed": -1}, 400, "seed", "from 0 to"),
    ({"guidance_scale": "high"}, 400, "guidance_scale", "a number"),
    ({"preview": 1}, 400, "preview", "true or false"),
    ({"style": "vivid"}, 400, "style", "is unknown"),
    ({"model": "other"}, 404, "model", "serves 'tiny'"),
]


@pytest.mark.parametrize(("fields", "status", "param", "says"), REFUSED)
def test_bad_fields_are_refused_by_name(image: RunningWorker, fields: dict[str, Any], status: int, param: str, says: str) -> None:
    response = image.client.post("/v1/images/generations", json={**RED_CIRCLE, **fields})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory through prlimit")
def test_the_worker_outlives_a_job_too_large_for_its_memory(image: RunningWorker) -> None:
    image.wait_for(running=0)
    used = int(Path(f"/proc/{image.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.prlimit(image.process.pid, resource.RLIMIT_AS)
    resource.prlimit(image.process.pid, resource.RLIMIT_AS, (used + 16 * 2**20, limits[1]))
    try:
        response = image.client.post("/v1/images/generations", json={**RED_CIRCLE, "width": 768, "height": 768})
    finally:
        resource.prlimit(image.process.pid, resource.RLIMIT_AS, limits)
    # before the first step the error is the answer, after it the stream's last event
    error = (response.json() if response.status_code == 503 else [*events(response)][-1])["error"]
    assert error["code"] == "out_of_memory"
    assert error["message"].startswith("The model's device has no memory for ")
    assert error["message"].endswith("ask for a smaller size.")
    assert images(draw(image))


def test_the_key_is_wanted(image: RunningWorker) -> None:
    assert httpx.post(image.base_url + "/v1/images/generations", json=RED_CIRCLE).status_code == 401


def test_sigterm_in_mid_picture_exits_with_code_0(checkpoints: Path) -> None:
    with RunningWorker("image_server", checkpoints / "image") as worker:
        assert worker.wait_ready()[0]["status"] == "loading"
        with worker.client.stream("POST", "/v1/images/generations", json=ENDLESS) as response:
            received = events(response)
            next(received)
            assert worker.terminate() == 0
            *_, failure = received
        assert failure["type"] == "error"
        assert failure["error"]["code"] == "shutting_down"
        assert worker.left_behind() == ""


@pytest.mark.parametrize(("index", "says"), [(None, "has no model_index.json"), ("{", "has no *.safetensors file")])
def test_a_broken_pipeline_is_one_line_and_code_1(tmp_path: Path, index: str | None, says: str) -> None:
    if index:
        (tmp_path / "model_index.json").write_text(index)
    with RunningWorker("image_server", tmp_path) as worker:
        assert worker.process.wait(60) == 1
        assert says in worker.left_behind()
