from __future__ import annotations

import pytest

from local_models.vllm_progress import FIRST_TOKEN, LISTING, STARTING, Loading, advance

# From starts of vLLM 0.32, on a CPU and (torch.compile, CUDA graphs) as its source writes them.
START = """\
(APIServer pid=30012) INFO 11-24 18:51:33 [model.py:733] Resolved architecture: Qwen3_5ForConditionalGeneration
(EngineCore pid=30095) INFO 11-24 18:51:42 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x', tokenizer='x'
(Worker pid=30117) INFO 11-24 18:51:52 [cpu_model_runner.py:68] Starting to load model /models/x...
Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  75% Completed | 3/4 [00:03<00:01, 1.12s/it]
Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:04<00:00, 1.12s/it]
(Worker pid=30117) INFO 11-24 18:51:52 [default_loader.py:501] Loading weights took 4.02 seconds
(Worker pid=30117) INFO 11-24 18:51:53 [gpu_model_runner.py:5150] Model loading took 17.66 GiB memory and 5.1 seconds
(Worker pid=30117) INFO 11-24 18:51:53 [backends.py:1167] Dynamo bytecode transform time: 6.91 s
(Worker pid=30117) INFO 11-24 18:51:53 [monitor.py:92] Initial profiling/warmup run took 3.10 s
(Worker pid=30117) INFO 11-24 18:51:53 [gpu_worker.py:760] Available KV cache memory: 3.1 GiB
(EngineCore pid=30095) INFO 11-24 18:51:53 [kv_cache_utils.py:2327] GPU KV cache size: 99,216 tokens, Maximum concurrency for 8,192 tokens
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|█████     | 16/32 [00:01<00:01, 14.9it/s]
(Worker pid=30117) INFO 11-24 18:51:54 [gpu_model_runner.py:6582] Graph capturing finished in 3 secs, took 0.52 GiB
(EngineCore pid=30095) INFO 11-24 18:51:56 [core.py:402] init engine (profile, create kv cache, warmup model) took 2.85 s
(APIServer pid=30012) INFO 11-24 18:51:57 [entry.py:140] Starting vLLM server on http://127.0.0.1:18432
"""


def test_a_whole_start() -> None:
    stages = [advance(STARTING, START.splitlines()[: lines + 1]) for lines in range(len(START.splitlines()))]
    assert [loading.stage for loading in stages] == [
        "reading the checkpoint's configuration",
        "starting the engine",
        "loading weights",
        "loading weights: 0 of 4 files",
        "loading weights: 3 of 4 files",
        "loading weights: 4 of 4 files",
        "weights are loaded",
        "weights are loaded",
        "compiling (torch.compile)",
        "measuring its memory",
        "measuring its memory",
        "room for 99,216 tokens in the KV cache",
        "capturing CUDA graphs: 16 of 32",
        "CUDA graphs are captured",
        "the engine is ready",
        "starting its server",
    ]
    progress = [loading.progress for loading in [STARTING, *stages, LISTING, FIRST_TOKEN]]
    assert progress == sorted(progress)
    assert 0 == progress[0] < progress[-1] < 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INFO: 127.0.0.1:5 - GET /health",
        "Loading safetensors checkpoint shards: soon",
        "(Worker_TP1 pid=9) INFO 11-24 18:51:52 [x.py:68] Starting to load model x...",  # the second worker is behind the first
        "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03, 1.12s/it]",
    ],
)
def test_a_line_that_means_nothing_or_is_behind_changes_nothing(line: str) -> None:
    before = Loading(0.6, "weights are loaded")
    assert advance(before, [line]) == before


def test_a_checkpoint_without_files_does_not_divide_by_zero() -> None:
    assert advance(STARTING, ["Loading safetensors checkpoint shards:  | 0/0"]).progress == pytest.approx(0.6)
