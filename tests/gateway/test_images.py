"""Image jobs through a gateway that listens; the engine is scripted, its steps are the test's."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest

from adapters.build import engine_specs
from gateway import images
from tests.gateway.live import IMAGE_MODEL, Live, ScriptedRuntime, image_settings, live_gateway, settings_of
from tests.scripted_upstream import Exchange, Request, Scenario, failing, scripted_upstream

PNG = base64.b64encode(b"\x89PNG fake").decode()
PROMPT = "a red circle"


def picture(request: Request, index: int = 0) -> dict[str, Any]:
    asked = request.json
    return {
        "type": "image",
        "image_index": index,
        "b64_json": PNG,
        "seed": asked["seed"] + index,
        "width": asked["width"],
        "height": asked["height"],
        "duration_s": 0.1,
    }


async def drawing(request: Request, exchange: Exchange) -> None:
    """Two steps, then the picture, for each picture."""
    await exchange.start_stream()
    for index in range(request.json["n"]):
        for step in (1, 2):
            await exchange.events({"type": "progress", "image_index": index, "step": step, "steps": 2})
        await exchange.events(picture(request, index))
    await exchange.events({"type": "done", "duration_s": 0.2})
    await exchange.end_stream()


def gateway_on(port: int, **upstream: Any) -> tuple[Any, ScriptedRuntime]:
    settings = image_settings(**upstream)
    runtime = ScriptedRuntime(engine_specs(settings), {"pictures:x": port})
    return live_gateway(settings, runtime), runtime


async def test_pictures_come_as_b64_json_with_their_seeds() -> None:
    async with scripted_upstream(drawing) as engine:
        gateway, runtime = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            reply = await client.images.generate(model="draw", prompt=PROMPT, n=2, size="64x96", extra_body={"seed": 7})
        assert reply.data is not None
        assert [item.b64_json for item in reply.data] == [PNG, PNG]
        assert [(item.model_extra or {})["seed"] for item in reply.data] == [7, 8]
        assert reply.output_format == "png"
        assert (reply.model_extra or {})["job_id"].startswith("img_")
        asked = engine.asked[0]
        assert asked.json == {"prompt": PROMPT, "n": 2, "width": 64, "height": 96, "num_inference_steps": 8, "seed": 7}
        assert asked.headers["x-request-id"] == (reply.model_extra or {})["job_id"]
        assert asked.headers["authorization"] == "Bearer engine-key"
        assert runtime.leases == 0


async def test_defaults_are_filled_in_and_a_seed_is_drawn() -> None:
    async with scripted_upstream(drawing) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            for _ in range(2):
                await client.images.generate(model="draw", prompt=PROMPT, response_format="b64_json", user="u", size="auto")
        first, second = (asked.json for asked in engine.asked)
        assert (first["width"], first["height"], first["n"]) == (128, 128, 1)
        assert first["seed"] != second["seed"]


async def test_a_streaming_client_sees_every_step_and_the_picture() -> None:
    async with scripted_upstream(drawing) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            stream = await client.images.generate(model="draw", prompt=PROMPT, stream=True, extra_body={"seed": 5})
            events = [event.model_dump() async for event in stream]
        assert [event["type"] for event in events] == ["image_generation.progress"] * 2 + ["image_generation.completed"]
        assert [(event["step"], event["steps"]) for event in events[:2]] == [(1, 2), (2, 2)]
        assert events[1]["eta_s"] == 0
        last = events[-1]
        assert (last["b64_json"], last["seed"], last["size"], last["model"]) == (PNG, 5, "128x128", "draw")


async def test_a_loading_engine_is_reported_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LOADING_REPORT_S", 0.01)
    async with scripted_upstream(drawing) as engine:
        gateway, runtime = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            runtime.loading = asyncio.Event()
            stream = aiter(await client.images.generate(model="draw", prompt=PROMPT, stream=True))
            first = (await anext(stream)).model_dump()
            assert (first["type"], first["progress"], first["stage"]) == ("image_generation.loading", 0.4, "reading weights")
            runtime.loading.set()
            rest = [event.type async for event in stream]
            assert rest[-1] == "image_generation.completed"


def held(release: asyncio.Event) -> Scenario:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events({"type": "progress", "image_index": 0, "step": 1, "steps": 8})
        await release.wait()
        await exchange.events(picture(request), {"type": "done"})
        await exchange.end_stream()

    return scenario


async def collect(live: Live, seen: list[Any]) -> None:
    async with live.sdk() as client:
        stream = await client.images.generate(model="draw", prompt=PROMPT, stream=True)
        async for event in stream:
            seen.append(event.model_dump())


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_jobs_run_one_at_a_time_in_order_and_know_their_place() -> None:
    release = asyncio.Event()
    async with scripted_upstream(held(release)) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live:
            seen: list[list[Any]] = [[], [], []]
            tasks = []
            for events in seen:
                tasks.append(asyncio.create_task(collect(live, events)))
                await until(lambda events=events: events)
            assert len(engine.asked) == 1
            assert [(events[0]["type"], events[0].get("position")) for events in seen] == [
                ("image_generation.progress", None),
                ("image_generation.queued", 1),
                ("image_generation.queued", 2),
            ]
            async with live.sdk() as client:
                extra = (await client.models.retrieve("draw")).model_extra
                assert extra is not None
                assert extra["tandem"]["deployments"][0]["jobs"] == {"step": 1, "steps": 8, "waiting": 2}
            tasks[1].cancel()  # the one in the middle leaves: the last one moves up
            await until(lambda: len(seen[2]) == 2)
            assert seen[2][1]["position"] == 1
            release.set()
            await asyncio.gather(tasks[0], tasks[2])
            assert [events[-1]["type"] for events in (seen[0], seen[2])] == ["image_generation.completed"] * 2
            assert len(engine.asked) == 2


async def test_a_full_queue_answers_at_once() -> None:
    release = asyncio.Event()
    async with scripted_upstream(held(release)) as engine:
        gateway, _ = gateway_on(engine.port, max_queue=1)
        async with gateway as live, live.sdk() as client:
            seen: list[list[Any]] = [[], []]
            tasks = [asyncio.create_task(collect(live, events)) for events in seen]
            await until(lambda: all(seen))
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError, match="holds 1 requests already") as caught:
                    await client.images.generate(model="draw", prompt=PROMPT, stream=stream)
                assert int(caught.value.response.headers["retry-after"]) >= 1
            release.set()
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine_and_frees_its_place(stream: bool) -> None:
    release = asyncio.Event()
    async with scripted_upstream(held(release)) as engine:
        gateway, runtime = gateway_on(engine.port)
        async with gateway as live:
            async with live.sdk() as client:
                asking = asyncio.create_task(_ask(client, stream))
                await until(lambda: engine.asked)
                await asyncio.sleep(0.02)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            async with asyncio.timeout(0.5):
                while engine.open_connections or runtime.leases:
                    await asyncio.sleep(0.005)
            engine.scenario = drawing
            async with live.sdk() as client:
                assert (await client.images.generate(model="draw", prompt=PROMPT)).data


async def _ask(client: openai.AsyncOpenAI, stream: bool) -> None:
    if stream:
        async for _ in await client.images.generate(model="draw", prompt=PROMPT, stream=True):
            pass
    else:
        await client.images.generate(model="draw", prompt=PROMPT)


async def test_an_engine_that_dies_in_mid_picture_is_an_error_and_the_next_job_works() -> None:
    async def dies(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events({"type": "progress", "image_index": 0, "step": 1, "steps": 8})
        exchange.cut()

    async with scripted_upstream(dies) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            with pytest.raises(openai.InternalServerError, match="closed the connection in the middle"):
                await client.images.generate(model="draw", prompt=PROMPT)
            with pytest.raises(openai.APIError, match="closed the connection in the middle"):
                async for _ in await client.images.generate(model="draw", prompt=PROMPT, stream=True):
                    pass
            engine.scenario = drawing
            assert (await client.images.generate(model="draw", prompt=PROMPT)).data


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "no more events"),
        ([{"type": "progress", "image_index": 0, "step": 1, "steps": 8}], "no more events"),
        (["{oops"], "an event that is not JSON"),
    ],
)
async def test_an_engine_that_ends_early_is_an_error_and_not_an_empty_list(events: list[Any], said: str) -> None:
    async def ends(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(*events)
        await exchange.end_stream()

    async with scripted_upstream(ends) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            with pytest.raises(openai.InternalServerError, match=said) as caught:
                await client.images.generate(model="draw", prompt=PROMPT)
            assert caught.value.status_code == 502
            with pytest.raises(openai.APIError, match=said):
                await _ask(client, stream=True)


async def test_another_engine_draws_where_one_cannot_but_not_what_one_refused() -> None:
    refusal = {"error": {"message": "no negative prompt here", "param": "negative_prompt"}}
    model = IMAGE_MODEL | {"deployments": [{"upstream": "pictures", "model": "x"}, {"upstream": "pictures", "model": "y"}]}
    settings = settings_of([model], {"pictures": {"kind": "diffusers"}})
    async with scripted_upstream(failing(503, {"error": "busy"})) as first, scripted_upstream(drawing) as second:
        runtime = ScriptedRuntime(engine_specs(settings), {"pictures:x": first.port, "pictures:y": second.port})
        async with live_gateway(settings, runtime) as live, live.sdk() as client:
            assert (await client.images.generate(model="draw", prompt=PROMPT)).data
            first.scenario = failing(400, refusal)
            with pytest.raises(openai.BadRequestError, match="no negative prompt"):
                await client.images.generate(model="draw", prompt=PROMPT)
            assert len(second.asked) == 1


async def test_an_engine_s_refusal_and_its_failure_keep_their_words() -> None:
    async def fails(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events({"type": "error", "error": {"message": "out of memory", "type": "server_error", "code": "out_of_memory"}})
        await exchange.end_stream()

    refusal = {"error": {"message": "no negative prompt here", "type": "invalid_request_error", "param": "negative_prompt", "code": "x"}}
    async with scripted_upstream(failing(400, refusal)) as engine:
        gateway, _ = gateway_on(engine.port)
        async with gateway as live, live.sdk() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.generate(model="draw", prompt=PROMPT, extra_body={"negative_prompt": "blue"})
            assert caught.value.param == "negative_prompt"
            engine.scenario = fails
            with pytest.raises(openai.InternalServerError, match="out of memory"):
                await client.images.generate(model="draw", prompt=PROMPT)


async def test_an_engine_that_does_not_start_is_503_with_its_reason() -> None:
    gateway, _ = gateway_on(0)
    async with gateway as live, live.sdk() as client:
        with pytest.raises(openai.InternalServerError, match="no such checkpoint") as caught:
            await client.images.generate(model="draw", prompt=PROMPT)
        assert caught.value.status_code == 503
