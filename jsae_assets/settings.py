"""The names of this project's environment variables, and what to say of one that nothing reads.

Not here: what they mean (docs/settings.md), reading them (`catalog.py`, `definitions.py`, `deploy/`).
"""

from collections.abc import Iterable
from difflib import get_close_matches

PREFIX = "JSAE_"
NAMES = (
    "JSAE_BATCH_TOKENS",
    "JSAE_CATALOG",
    "JSAE_CHECKPOINT_SECONDS",
    "JSAE_DEVICE",
    "JSAE_DTYPE",
    "JSAE_EXECUTOR",
    "JSAE_MEMORY_GIB",
    "JSAE_POSTGRES_URL",
    "JSAE_RAY_DASHBOARD",
    "JSAE_RAY_HEAD",
    "JSAE_STORAGE",
    "JSAE_STORAGE_URL",
    "JSAE_WANDB_PROJECT",
    "JSAE_WEB_HOST",
    "JSAE_WEB_PORT",
)


def unread(variables: Iterable[str]) -> list[str]:
    """Return a sentence about each variable that is named like one of this project, but is none."""
    sentences = []
    for name in sorted(variables):
        if name.upper().startswith(PREFIX) and name not in NAMES:
            alike = get_close_matches(name.upper(), NAMES, n=1)
            guess = f"did you mean {alike[0]}?" if alike else f"the variables are {', '.join(NAMES)}"
            sentences.append(f"{name} is set, but nothing reads a variable of this name: {guess}")
    return sentences
