"""The names of this project's environment variables, and what to say of one that nothing reads.

Not here: what they mean (docs/settings.md), reading them (`catalog_file.py`, `definitions.py`, `deploy/`).
"""

from collections.abc import Iterable

from jsae_core.names import advice

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
            sentences.append(f"{name} is set, but nothing reads a variable of this name; {advice(name, NAMES)}")
    return sentences
