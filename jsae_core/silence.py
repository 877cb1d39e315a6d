"""Servers that did not answer: for a while nothing here asks them again.

Where ten layers' pairs come from a server that hangs, waiting for it takes the limit once, not ten times. Here: what
this process remembers. Not here: how long an answer may take, and what is no answer (`hub.py`, `hub_errors.py`,
`wandb_client.py`).
"""

from __future__ import annotations

import math
import time

SECONDS = 60.0  # for which a server is not asked again
_silent_at: dict[str, float] = {}  # by server: when it was last waited for in vain


def remember(server: str) -> None:
    """Remember that a server did not answer just now."""
    _silent_at[server] = time.monotonic()


def since(server: str) -> str | None:
    """Return in words when a server did not answer, if it is not to be asked again yet; else None."""
    ago = time.monotonic() - _silent_at.get(server, -math.inf)
    if ago >= SECONDS:
        return None
    return f"it did not answer {ago:.0f} s ago, and is not asked again before {SECONDS:.0f} s have passed"
