from __future__ import annotations

import pytest

from local_models.vllm_errors import explain

TRACE = """\
(Worker pid=30117) ERROR 11-24 18:52:38 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=30117) ERROR 11-24 18:52:38 [multiproc_executor.py:1063]   File "/x/vllm/_custom_ops.py", line 3567, in chunk_gated_delta_rule_cpu
(Worker pid=30117) ERROR 11-24 18:52:38 [multiproc_executor.py:1063] {error}
(EngineCore pid=30095) ERROR 11-24 18:52:38 [core.py:1512] RuntimeError: Worker failed with error '{message}', please check the stack trace above for the root cause
(APIServer pid=30012) ERROR 11-24 18:52:38 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
nanobind: leaked 514 functions!
 - leaked function "get_operand"
"""  # noqa: E501
KV = (
    "ValueError: To serve at least one request with the model's max seq len (262144), (8.0 GiB KV cache is needed, which is larger than "
    "the available KV cache memory (3.1 GiB). {most}Try increasing `gpu_memory_utilization` (which also controls CPU memory)"
)


# The messages are those of vLLM 0.32, from its log where it could be made to fail, else from its source.
@pytest.mark.parametrize(
    ("log", "words", "lasting"),
    [
        ("RuntimeError: Unexpected head dim size, 32", ["head dimension of 32", "64 or 128"], True),
        ("ValueError: Head size 80 is not supported by FlashInfer.", ["head dimension", "attention-backend"], True),
        (KV.format(most="Based on the available memory, the estimated maximum model length is 101376. "), ["262144", "to 101376"], True),
        (KV.format(most=""), ["8.0 GiB", "3.1 GiB are left", "lower max-model-len", "tandem plan"], True),
        ("ValueError: No available memory for the cache blocks. Try", ["no memory for the KV cache", "tandem plan"], True),
        (
            "ValueError: Free memory on device cuda:0 (2.1/23.6 GiB) on startup is less than desired GPU memory utilization "
            "(0.9, 21.2 GiB). Decrease",
            ["wants 21.2 GiB", "2.1 of 23.6 GiB are free on cuda:0", "nvidia-smi"],
            False,
        ),
        (
            "RuntimeError: Available memory on node 0 (14.9/23.5 GiB) on kv cache allocation is less than requested memory for kv "
            "(400.0 GiB).",
            ["wants 400.0 GiB", "14.9 GiB are free", "VLLM_CPU_KVCACHE_SPACE"],
            False,
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has",
            ["2.50 GiB more", "max-model-len", "tandem plan"],
            False,
        ),
        ("RuntimeError: CUDA error: out of memory", ["the GPU ran out of memory;"], False),
        ("    assert num_cache_lines >= batch\nAssertionError", ["max-cudagraph-capture-size"], True),
        (
            "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: x",
            ["architecture 'FooForCausalLM'", "upgrade vLLM"],
            True,
        ),
        (
            "  Value error, The checkpoint you are trying to load has model type `foo_9` but Transformers does not recognize this "
            "architecture.",
            ["model type 'foo_9'"],
            True,
        ),
        (
            "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len "
            "(max_position_embeddings=2048.0 or",
            ["99999", "checkpoint's own 2048;"],
            True,
        ),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Access to model x/y is restricted.", ["licence", "HF_TOKEN"], True),
        (
            "HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use",
            ["no checkpoint at /nonexistent/model"],
            True,
        ),
        ("RuntimeError: Cannot find any model weights with `/m`", ["no weights in /m", "tandem models download"], True),
        ("ValueError: Invalid repository ID or local directory specified: '/m'.", ["'/m' is no checkpoint", "config.json"], True),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
            ["not on this machine", "tandem models download"],
            True,
        ),
        ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", ["damaged"], True),
        (
            "  Value error, Total number of attention heads (4) must be divisible by tensor parallel size (3).",
            ["4 attention heads", "among 3 GPUs"],
            True,
        ),
        ("api_server.py: error: unrecognized arguments: --no-such-flag", ["--no-such-flag", "`args`"], True),
        ("api_server.py: error: argument --dtype: invalid choice: 'x'", ["refuses --dtype: invalid choice: 'x'"], True),
        ("RuntimeError: Ninja is required to load C++ extensions", ["`ninja`"], True),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", ["`ninja`"], True),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", ["CUDA compiler", "CUDA_HOME"], True),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", ["C++ compiler"], True),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", ["dtype: float16"], True),
        ("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device", ["no kernels for this GPU"], True),
        ("RuntimeError: Found no NVIDIA driver on your system.", ["driver"], True),
        ("OSError: [Errno 98] Address already in use", ["port"], False),
    ],
)
def test_each_failure_is_one_sentence_with_a_remedy(log: str, words: list[str], lasting: bool) -> None:
    found = explain(
        f"(EngineCore pid=1) ERROR 11-24 09:00:00 [core.py:1] {log}\nRuntimeError: Engine core initialization failed. See root\n"
    )
    assert found is not None
    assert [word for word in words if word not in found.sentence] == []
    assert "{" not in found.sentence
    assert "\n" not in found.sentence
    assert found.lasting is lasting


def test_the_root_cause_is_found_below_its_echoes() -> None:
    found = explain(TRACE.format(error="RuntimeError: something new", message="something new"))
    assert found is not None
    assert (found.sentence, found.lasting) == ("something new", False)
    known = explain(TRACE.format(error="RuntimeError: Unexpected head dim size, 32", message="Unexpected head dim size, 32"))
    assert known is not None
    assert "head dimension of 32" in known.sentence


def test_an_exception_that_is_not_known_is_shown_as_it_is() -> None:
    found = explain("(EngineCore pid=1) ERROR 11-24 09:00:00 [core.py:1] foo.bar.OddError: 7 is odd\n")
    assert found is not None
    assert found.sentence == "OddError: 7 is odd"


def test_a_warning_is_no_reason() -> None:
    warning = "User-specified max_model_len (99) is greater than the derived max_model_len (max_position_embeddings=20"
    assert explain(f"(APIServer pid=1) WARNING 11-24 18:59:17 [model.py:2660] {warning}\n") is None


@pytest.mark.parametrize("log", ["", "INFO: fine\n", "nanobind: leaked 4 instances!\n - leaked x\n"])
def test_where_nothing_is_said_nothing_is_made_up(log: str) -> None:
    assert explain(log) is None
