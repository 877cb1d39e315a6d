"""Several GPUs in one machine: a step computes on one that no other process computes on.

The pool limits how many steps compute at once to the number of devices, so there is always one that is free. Here:
which one it is. Not here: choosing the kind of device, loading models (`resources.py`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jsae_core.locks import if_free


@contextlib.contextmanager
def one_of(count: int, preferred: int | None) -> Iterator[int | None]:
    """The number of a CUDA device that is held until the block ends: the preferred one if it is free. None if others
    hold all of them, as they may where the pool has more slots than this machine has devices."""
    numbers = sorted(range(count), key=lambda number: number != preferred)
    with contextlib.ExitStack() as held:
        yield next((number for number in numbers if _is_free(number, held)), None)


def _is_free(number: int, held: contextlib.ExitStack) -> bool:
    """Whether a device is free; it is held from now on. The system ends the holding with the process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[number].strip() if number < len(visible) and visible[number] else str(number)
    folder = Path(tempfile.gettempdir()) / f"jsae-devices-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = folder / f"cuda-{name}.lock"
    lock.touch()
    return held.enter_context(if_free(lock))


def on_a_device_of_its_own(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of an asset or a check in the pool, which takes `compute`: it holds a device while it computes."""
    if inspect.isgeneratorfunction(body):

        @functools.wraps(body)
        def computed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with kwargs["compute"].device_of_its_own():
                yield from body(*args, **kwargs)

    else:

        @functools.wraps(body)
        def computed(*args: Any, **kwargs: Any) -> Any:
            with kwargs["compute"].device_of_its_own():
                return body(*args, **kwargs)

    return computed
