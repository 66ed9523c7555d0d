"""A process that is measured: it warms up, then does the work that each line of its input asks for.

Used by what runs in other environments, so nothing but Python itself is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def serve(work: Callable[[int], int], note: str = "") -> None:
    """Answers `contest.py`, which sends amounts of work, a line each, until the pipe is closed.

    Args:
      work: does about so much (a number of images, say), and returns how much it was. Must be warm: this process is measured
        from now on.
      note: one line about what is done, for the table.
    """
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        print("ready", note, file=answers)
        for line in sys.stdin:
            print(work(int(line)), file=answers)
    os._exit(0)  # without waiting for what was read ahead
