"""The official SDK in both of its current major versions: 3.x is locked for the app, 2.x lies beside it for this test."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import openai
import pytest

from tests.gateway.live import KEY, live_gateway
from tests.gateway.test_swap import TESTS, check, one_model
from tests.openrouter_like import openrouter_like
from tests.scripted_upstream import scripted_upstream

OLDER = Path(sys.prefix) / "openai-2"


def test_the_locked_sdk_is_3() -> None:
    assert openai.__version__.startswith("3.")


@pytest.mark.skipif(not OLDER.exists(), reason=f"the 2.x SDK is not in {OLDER}; ./tandem test installs it there")
async def test_the_client_script_works_with_2() -> None:
    async with scripted_upstream(openrouter_like) as hosted:
        upstream = {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key"}
        async with live_gateway(one_model(("or", "a/b"), upstreams={"or": upstream})) as live:
            environment = {**os.environ, "PYTHONPATH": str(OLDER)}
            script = str(TESTS / "swap_client.py")
            code = f"import openai, runpy; assert openai.__version__[0] == '2'; runpy.run_path({script!r}, run_name='__main__')"
            arguments = (sys.executable, "-c", code, live.base_url, KEY, "m")
            process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, env=environment)
            out, _ = await process.communicate()
            assert process.returncode == 0
            check(json.loads(out))
