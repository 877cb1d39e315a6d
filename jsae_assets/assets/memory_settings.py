"""Adds the names of helpful settings to errors about memory and disk space. (jsae_core raises these errors, but does
not know the platform's settings.)

Not here: the settings themselves (`resources.py`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jsae_assets.resources import Compute
from jsae_core.memory import TemporaryFileError

LESS_MEMORY = (
    "Settings that help: JSAE_DTYPE=bfloat16 takes half the memory, JSAE_DEVICE names another device, and a smaller "
    "JSAE_BATCH_TOKENS or JSAE_MEMORY_GIB keeps less in memory at once"
)
SMALLER_FILE = "With a larger JSAE_MEMORY_GIB, a histogram keeps more in memory and less in that file"


def naming_settings(body: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Decorator for an asset's body: its errors about memory also say what the run keeps on the device, and name the
    settings that help."""

    @functools.wraps(body)
    def with_settings_named(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from body(*args, **kwargs)
        except TemporaryFileError as error:
            raise TemporaryFileError(f"{error}. {SMALLER_FILE}") from error
        except MemoryError as error:
            raise MemoryError(f"{error}. {_memory_in_use(args, kwargs)}{LESS_MEMORY}") from error
        except RuntimeError as error:
            torch = sys.modules.get("torch")  # without importing it: the error can only come from an imported torch
            if torch is None or not isinstance(error, torch.OutOfMemoryError):
                raise
            raise MemoryError(f"{error}. {_memory_in_use(args, kwargs)}{LESS_MEMORY}") from error

    return with_settings_named


def _memory_in_use(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return sentences about what the compute resource among an asset's arguments keeps on the device."""
    sentences = [compute.memory_in_use() for compute in (*args, *kwargs.values()) if isinstance(compute, Compute)]
    return "".join(f"{sentence}. " for sentence in sentences if sentence)
