"""Where memory or disk does not suffice, the core says for what; here the settings are added that change it.

Not here: the settings themselves (`resources.py`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jsae_assets.resources import Compute
from jsae_core.memory import TemporaryFileError

SMALLER = (
    "Settings of this platform that help: JSAE_DTYPE=bfloat16 takes half the memory, JSAE_DEVICE names another device, "
    "JSAE_BATCH_TOKENS and JSAE_MEMORY_GIB keep less at once"
)
MORE = "A histogram keeps more in memory, and less in that file, with a larger JSAE_MEMORY_GIB"


def naming_settings(body: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """An asset's body, whose errors about memory say what its run holds on the device, and name the settings that
    help."""

    @functools.wraps(body)
    def named(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from body(*args, **kwargs)
        except TemporaryFileError as error:
            raise TemporaryFileError(f"{error}. {MORE}") from error
        except MemoryError as error:
            raise MemoryError(f"{error}. {_held(args, kwargs)}{SMALLER}") from error
        except RuntimeError as error:
            torch = sys.modules.get("torch")  # not imported for this: who has not, cannot have met this error
            if torch is None or not isinstance(error, torch.OutOfMemoryError):
                raise
            raise MemoryError(f"{error}. {_held(args, kwargs)}{SMALLER}") from error

    return named


def _held(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What the compute resource among an asset's arguments holds."""
    said = [compute.held() for compute in (*args, *kwargs.values()) if isinstance(compute, Compute)]
    return "".join(f"{one}. " for one in said if one)
