from __future__ import annotations

from pathlib import Path

import pytest

from local_models.logs import LINE_LIMIT, TAIL_BYTES, Follower, error_lines, last_useful_line, log_path, open_log, read_tail


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("\n \n---\n", None),
        ("the checkpoint has no config.json\n", "the checkpoint has no config.json"),
        (
            "Traceback (most recent call last):\n  File 'x.py', line 1, in f\n    f()\nValueError: no such device\n\n",
            "ValueError: no such device",
        ),
        ("RuntimeError: CUDA out of memory\n  warnings.warn(\n", "RuntimeError: CUDA out of memory"),
        ("loading\rLoading weights:  50%|█████     | 1/2\r", "loading"),
        ("\x1b[31mred alert\x1b[0m\n", "red alert"),
        (
            "(EngineCore pid=9) ERROR 11-24 09:00:01 [core.py:7] ValueError: No available memory for the cache blocks\n"
            "(EngineCore pid=9) ERROR 11-24 09:00:01 [core.py:7]   File 'core.py'\n"
            "(APIServer pid=8) Traceback (most recent call last):\n"
            "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "ValueError: No available memory for the cache blocks",
        ),
        ("x" * 2000, "x" * LINE_LIMIT),
    ],
)
def test_the_line_that_says_why(text: str, line: str | None) -> None:
    assert last_useful_line(text) == line


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * TAIL_BYTES + b"\xffend")
    tail = read_tail(log)
    assert len(tail) == TAIL_BYTES
    assert tail.endswith("\ufffdend")


def test_lines_that_are_marked_as_harmless_say_nothing_of_an_error() -> None:
    log = (
        "(Worker pid=9) WARNING 11-24 09:00:01 [x.py:7] odd\n(Worker pid=9) ERROR 11-24 09:00:01 [x.py:7] ValueError: bad\nINFO 1\nplain\n"
    )
    assert error_lines(log) == ["ValueError: bad", "plain", ""]


def test_a_growing_log_is_followed_line_by_line_over_a_turn(tmp_path: Path) -> None:
    log = tmp_path / "log"
    follower = Follower(log)
    assert follower.new_lines() == []
    log.write_bytes(b"one\ntw")
    assert follower.new_lines() == ["one"]
    with log.open("ab") as more:
        more.write(b"o\rthree\n\xff")
    assert follower.new_lines() == ["two", "three"]
    log.replace(tmp_path / "log.1")
    log.write_bytes(b"new\n")
    assert follower.new_lines() == ["new"]
    log.write_bytes(b"x\n")
    assert follower.new_lines() == ["x"], "it was cut short"


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none") == ""


def test_names_become_different_files_in_the_folder(tmp_path: Path) -> None:
    names = ["here:Qwen/Qwen3.5-9B", "here:Qwen-Qwen3.5-9B", "x:../../etc/passwd", "x:" + "y" * 500, "x:..", ""]
    paths = [log_path(tmp_path, name) for name in names]
    assert paths[0].name.startswith("here-Qwen-Qwen3.5-9B-")
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path.parent == tmp_path
        open_log_and_close(path)


def open_log_and_close(path: Path) -> None:
    with open(open_log(path), "wb"):
        pass
