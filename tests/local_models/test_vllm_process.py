"""A supervised vLLM, imitated by a real process: when it counts as ready, what its log is read for, and how it is given up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from local_models.backoff import RestartPolicy
from local_models.errors import EngineError, EngineLost, GivenUp, StartFailed
from local_models.process import Process
from tests.local_models.conftest import Clock, Engines, ask, until, until_state

HEAD_DIM = "(Worker pid=7) ERROR 11-24 18:52:38 [multiproc_executor.py:1063] RuntimeError: Unexpected head dim size, 32"
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.6 GiB"


def vllm(engines: Engines, *flags: str, lists: str = "m", clock: Clock | None = None, watch_interval_s: float = 10.0) -> Process:
    policy = RestartPolicy(max_restarts=1, first_delay_s=0.001)
    return engines.process(
        "--vllm", lists, *flags, vllm_model="m", restarts=policy, watch_interval_s=watch_interval_s, clock=clock or time.monotonic
    )


async def failure_of(process: Process) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await process.ensure_ready()
    return caught.value


async def test_it_is_ready_when_its_model_is_listed_and_a_token_is_made(engines: Engines) -> None:
    process = vllm(engines)
    address = await process.ensure_ready()
    assert b'"id": "m"' in await ask(address, "/v1/models")
    assert (process.status().state, process.status().progress, process.status().stage) == ("ready", None, None)


async def test_a_server_that_lists_another_model_does_not_become_ready(engines: Engines) -> None:
    error = await failure_of(vllm(engines, lists="other"))
    assert type(error) is StartFailed
    assert "it said that it is healthy, but it does not list the model 'm' in GET /v1/models, but other" in error.reason


async def test_an_engine_that_dies_of_its_first_token_is_given_up_at_once_with_the_remedy(engines: Engines) -> None:
    process = vllm(engines, "--first-request", "fail", "--log-of-death", HEAD_DIM)
    error = await failure_of(process)
    assert "it answered its first request, one token, with 500 (its engine died): " in error.reason
    assert "its kernels cannot compute with a head dimension of 32" in error.reason
    await until_state(process, "failed")
    again = await failure_of(process)
    assert type(again) is GivenUp
    assert again.retry_after_s is not None
    assert "crashed once, because" in again.reason
    assert (process.status().reason or "").startswith("given up: it crashed once, because it said that it is healthy, but")
    assert len(engines.pids()) == 1, "another start would have ended in the same way"


async def test_a_server_that_ends_with_its_engine_is_explained_from_its_log(engines: Engines) -> None:
    error = await failure_of(vllm(engines, "--first-request", "exit", "--log-of-death", HEAD_DIM))
    assert "its kernels cannot compute with a head dimension of 32" in error.reason


async def test_what_may_be_better_the_next_time_is_tried_again(engines: Engines) -> None:
    clock = Clock()
    process = vllm(engines, "--first-request", "fail", "--log-of-death", OUT_OF_MEMORY, clock=clock)
    for starts in (1, 2):
        error = await failure_of(process)
        assert "the GPU ran out of memory when 2.50 GiB more were wanted" in error.reason
        assert "`tandem plan`" in error.reason
        assert len(engines.pids()) == starts
        clock.now += 1
    assert type(await failure_of(process)) is GivenUp


async def test_a_reset_allows_another_start_of_one_that_was_given_up(engines: Engines) -> None:
    process = vllm(engines, "--first-request", "fail", "--log-of-death", HEAD_DIM)
    await failure_of(process)
    process.reset()
    assert type(await failure_of(process)) is StartFailed
    assert len(engines.pids()) == 2


async def test_its_log_says_how_far_it_is(engines: Engines, tmp_path: Path) -> None:
    log = tmp_path / "to-say"
    log.write_text("(Worker pid=7) INFO 11-24 18:51:52 [cpu_model_runner.py:68] Starting to load model x...\n")
    process = vllm(engines, "--log-from", str(log))
    assert process.status().stage is None
    start = asyncio.create_task(process.ensure_ready())
    await until(lambda: process.status().stage == "loading weights", "the first line")
    with log.open("a") as more:
        more.write("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:04<00:04,  2.0s/it]\n")
    await until(lambda: process.status().stage == "loading weights: 2 of 4 files", "the second line")
    assert process.status().progress == pytest.approx(0.35)
    with log.open("a") as more:
        more.write("END\n")
    await start


async def test_an_engine_that_is_dead_behind_an_open_socket_is_noticed(engines: Engines) -> None:
    process = vllm(engines, watch_interval_s=0.02)
    await ask(await process.ensure_ready(), "/sick")
    await until_state(process, "failed")
    assert "answering 503" in (process.status().reason or "")
    assert engines.running() == []


async def test_whoever_suspects_a_death_has_it_looked_at_at_once(engines: Engines) -> None:
    process = vllm(engines, watch_interval_s=600)
    address = await process.ensure_ready()
    assert await process.notice_end(address, 0.05) is None
    await ask(address, "/sick")
    lost = await process.notice_end(address, 10)
    assert isinstance(lost, EngineLost)
    assert "answering 503" in lost.reason
    assert lost.retry_after_s is not None
    assert (await process.ensure_ready()).key != address.key, "whoever asks next gets a new one"


async def test_words_in_the_log_of_a_running_engine_do_not_give_it_up(engines: Engines) -> None:
    clock = Clock()
    process = vllm(engines, "--say", HEAD_DIM, watch_interval_s=0.02, clock=clock)
    await ask(await process.ensure_ready(), "/sick")
    await until_state(process, "failed")
    clock.now += 1
    await process.ensure_ready()
    assert len(engines.pids()) == 2
