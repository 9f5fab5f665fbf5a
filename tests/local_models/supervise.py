"""A small Tandem for the tests: keeps fake engines ready until somebody kills it. `supervise.py FOLDER COUNT FLAGS...`"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.local_models.conftest import Engines


async def main() -> None:
    folder, count, *flags = sys.argv[1:]
    engines = Engines(Path(folder))
    processes = [engines.process(*flags, stop_grace_s=0.2) for _ in range(int(count))]
    if "--load-s" not in flags:
        await asyncio.gather(*(process.ensure_ready() for process in processes))
        print("ready", flush=True)
    await asyncio.gather(*(process.keep_ready() for process in processes))


if __name__ == "__main__":
    asyncio.run(main())
