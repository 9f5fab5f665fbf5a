from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chat.errors import CannotBench
from bench.chat.programs import Programs, build
from tests.soak.size import FULL
from tests.soak.stage import Stage, soft_limit_of_files, staged
from tests.soak.table import Table


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The bench's C programs."""
    try:
        return build(tmp_path_factory.mktemp("programs"))
    except CannotBench as error:
        pytest.skip(f"the soak needs a compiled upstream: {error}")


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    size = "in full" if FULL else "a small part; TANDEM_TEST_SOAK=1 runs all of it"
    print(f"\n\nSoak, {size}:\n{table.text()}")


@pytest.fixture(scope="session")
def stage(built: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One for all tests that leave it as it was."""
    soft_limit_of_files()
    with staged(built, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture
def own_stage(built: Programs, tmp_path: Path) -> Iterator[Stage]:
    """One that a test may break."""
    soft_limit_of_files()
    with staged(built, tmp_path) as stage:
        yield stage
