from __future__ import annotations

import pytest

from bench.chat.programs import Programs, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The bench's C programs."""
    return build(tmp_path_factory.mktemp("bench"))
