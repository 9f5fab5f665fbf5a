from __future__ import annotations

import pytest

from local_models.vllm_args import fraction, given_flags, whole


def test_flags_in_every_spelling() -> None:
    args = ["--max-model-len=8192", "--max_num_seqs", "4", "--enforce-eager", "-tp", "2", "-q=fp8", "--limit-mm-per-prompt", '{"image":2}']
    assert given_flags(args) == {
        "--max-model-len": "8192",
        "--max-num-seqs": "4",
        "--enforce-eager": None,
        "--tensor-parallel-size": "2",
        "--quantization": "fp8",
        "--limit-mm-per-prompt": '{"image":2}',
    }


def test_the_last_of_two_counts() -> None:
    assert given_flags(["--max-model-len", "1", "--max-model-len", "2"]) == {"--max-model-len": "2"}


@pytest.mark.parametrize(
    ("text", "number"), [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("1.5k", 1500), ("auto", None), ("-1", None), (None, None)]
)
def test_numbers_as_vllm_writes_them(text: str | None, number: int | None) -> None:
    assert whole({"--max-model-len": text}, "--max-model-len") == number


@pytest.mark.parametrize(
    ("text", "part"), [("0.9", 0.9), (".5", 0.5), ("1", 1.0), ("0", None), ("1.2", None), ("much", None), (None, None)]
)
def test_a_part_of_one(text: str | None, part: float | None) -> None:
    assert fraction({"--gpu-memory-utilization": text}, "--gpu-memory-utilization") == part
