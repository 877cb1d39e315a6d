"""Servers that did not answer, so that they are not asked again for a while.

If the pairs of ten layers are to come from a server that hangs, the longest time to wait is then spent once, not ten
times. Here: which servers did not answer this process, and when. Not here: how long to wait for an answer, and which
errors mean that none came (`hub.py`, `hub_errors.py`, `wandb_client.py`).
"""

from __future__ import annotations

import math
import time

SECONDS = 60.0  # how long a server that did not answer is not asked again
_silent_at: dict[str, float] = {}  # by server: when it last did not answer


def remember(server: str) -> None:
    """Remember that a server has just failed to answer."""
    _silent_at[server] = time.monotonic()


def since(server: str) -> str | None:
    """Return a clause that says how long ago a server did not answer and when it is asked again; None if it may be
    asked now."""
    ago = time.monotonic() - _silent_at.get(server, -math.inf)
    if ago >= SECONDS:
        return None
    return f"it did not answer {ago:.0f} s ago, and is not asked again for another {SECONDS - ago:.0f} s"
