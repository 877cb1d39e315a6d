"""Several GPUs in one machine: a step computes on one that no other process computes on.

The pool limits how many steps compute at once to the number of devices, so a device is always free. Here: finding and
reserving a free device. Not here: choosing the kind of device, loading models (`resources.py`).
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
def reserved_device(count: int, preferred: int | None) -> Iterator[int | None]:
    """Context manager that reserves one of `count` CUDA devices until the block ends, and gives its number: the
    preferred one if it is free. It gives None if other processes have reserved all devices, which can happen if the
    pool has more slots than this machine has devices."""
    numbers = sorted(range(count), key=lambda number: number != preferred)
    with contextlib.ExitStack() as locks:
        yield next((number for number in numbers if _reserve(number, locks)), None)


def _reserve(number: int, locks: contextlib.ExitStack) -> bool:
    """Reserve a device by a file lock, which the operating system releases when the process ends. Return whether it
    was free."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[number].strip() if number < len(visible) and visible[number] else str(number)
    folder = Path(tempfile.gettempdir()) / f"jsae-devices-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = folder / f"cuda-{name}.lock"
    lock.touch()
    return locks.enter_context(if_free(lock))


def on_a_device_of_its_own(body: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for the body of an asset or a check in the pool, which takes `compute`: it reserves a device while the
    body runs."""
    if inspect.isgeneratorfunction(body):

        @functools.wraps(body)
        def with_device(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with kwargs["compute"].device_of_its_own():
                yield from body(*args, **kwargs)

    else:

        @functools.wraps(body)
        def with_device(*args: Any, **kwargs: Any) -> Any:
            with kwargs["compute"].device_of_its_own():
                return body(*args, **kwargs)

    return with_device
