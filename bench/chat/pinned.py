"""Run a command on one core, and not longer than whoever asked for it: `python -I pinned.py PARENT CORE COMMAND...`.

Linux, standard library only.

The core is set before the command starts, so that it holds for every thread it will have; SIGKILL comes when the parent dies, however
it dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    os.sched_setaffinity(0, {int(sys.argv[2])})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)
    os.execvp(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
