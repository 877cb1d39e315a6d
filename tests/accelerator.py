"""A pretended accelerator, for machines that have none: tensors that lie on the CPU, say that they are elsewhere, and
refuse what a real device refuses.

Here: where each tensor is said to be, which operations mix devices, and which of them make the processor wait for the
device. Not here: what is done on NVIDIA's GPUs alone (`pretended_gpu.py`), how fast anything is, and how kernels of a
real device round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
# values are read back, or are needed to know how large the result is
WAITING = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose", "bincount", "isin"}
WAITING |= {"nonzero", "unique", "unique_consecutive", "masked_select", "repeat_interleave"}
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}  # indices may be on the CPU
BUFFERED = 2**16  # bytes: of what is moved from the CPU's own memory, more is not taken while the device computes
BETWEEN_DEVICES = {"to", "copy_", "data", "_has_compatible_shallow_copy_type"}


class MixedDevices(RuntimeError):
    """Tensors of two devices in one operation."""


class Accelerator(TorchFunctionMode):
    """While it is entered, `device` can be used like a device with a memory of its own.

    A tensor is where its storage is: views, parameters and what autograd keeps are in the same place.

    Args:
        room: bytes of the largest tensor that is moved there; None: any.

    Attributes:
        waits: how often the processor waited for the device, by operation.
    """

    device = torch.device("xpu", 0)  # a type of which this project knows nothing

    def __init__(self, room: int | None = None):
        super().__init__()
        self._room = room
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = resolve_name(func) or func.__name__
        operation = name.removesuffix(".__get__").removesuffix(".__set__").rsplit(".", 1)[-1]
        if name == "torch.Tensor.device.__get__":
            return self.device if _is_there(args[0]) else func(*args)
        asked, args, kwargs = self._asked_device(operation, args, kwargs or {})
        if operation in ("pin_memory", "is_pinned") or "pin_memory" in kwargs:
            return self._pinned(operation, func, args, kwargs)
        there = self._is_its_own(operation, args, kwargs)
        self._count_wait(operation, args, kwargs, there, asked)
        result = func(*args, **kwargs)
        if asked is not None:
            there = asked.type == self.device.type
            return tree_map(lambda value: self._moved(value, there), result)
        if there and operation != "copy_":
            tree_map(_put_there, result)
        return result

    def _is_its_own(self, operation: str, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether an operation is the device's own. Raises MixedDevices."""
        if torch._C._current_graph_task_id() != -1:  # autograd makes gradients without showing them
            return True
        checked = (args[0], *args[2:]) if operation in INDEXING else args
        tensors = list(_tensors((checked, kwargs)))
        there = [tensor for tensor in tensors if _is_there(tensor)]
        here = [tensor for tensor in tensors if not _is_there(tensor) and tensor.dim()]  # a number goes anywhere
        if there and here and operation not in BETWEEN_DEVICES:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in here)
            raise MixedDevices(f"{operation}: tensors of shape {shapes} are on the CPU, others on {self.device}")
        if there and operation == "numpy":
            raise TypeError(f"a tensor on {self.device} has no NumPy array; copy it to the CPU first")
        return bool(there)

    def _moved(self, value: Any, there: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        if there and self._room is not None and value.nbytes > self._room:
            raise torch.OutOfMemoryError(f"{self.device} is out of memory: tried to allocate {value.nbytes} bytes")
        if _is_there(value) != there:
            value = value.clone()  # it may share its storage with what was to be moved
        return _put_there(value) if there else value

    def _pinned(self, operation: str, func, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Memory of the host that a device reads and writes by itself: no CPU-only build of torch has any."""
        if operation == "is_pinned":
            return _is_pinned(args[0])
        pinned = args[0].clone() if operation == "pin_memory" else func(*args, **kwargs | {"pin_memory": False})
        pinned.untyped_storage().is_pinned_there = operation == "pin_memory" or kwargs["pin_memory"]
        return pinned

    def _count_wait(
        self, operation: str, args: tuple, kwargs: dict[str, Any], there: bool, asked: torch.device | None
    ) -> None:
        by_mask = operation in INDEXING and any(tensor.dtype == torch.bool for tensor in _tensors(args[1:2]))
        known_size = operation == "repeat_interleave" and "output_size" in kwargs
        moved = asked is not None and asked.type == self.device.type and operation == "to" and not _is_there(args[0])
        if there and (operation in WAITING or by_mask or asked == CPU) and not known_size:
            self.waits[operation] += 1
        if moved and args[0].nbytes > BUFFERED and not _is_overlapped(args[0], kwargs):
            self.waits["to"] += 1
        if operation == "copy_" and there and not _is_there(args[0]) and not _is_overlapped(args[0], kwargs):
            self.waits["copy_"] += 1

    def _asked_device(
        self, operation: str, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[torch.device | None, tuple, dict[str, Any]]:
        """The device that an operation's result is to be on, if one is named, and the arguments with the CPU in the
        place of the pretended one."""
        if operation == "cpu":
            return CPU, args, kwargs
        if operation == "to" and len(args) > 1 and isinstance(args[1], Tensor):  # as this other tensor is
            tensor, other, *rest = args
            asked = self.device if _is_there(other) else other.device
            return asked, (tensor, self._real(asked), other.dtype, *rest), kwargs
        if operation == "to" and len(args) > 1 and isinstance(args[1], (str, torch.device)):
            tensor, device, *rest = args
            return torch.device(device), (tensor, self._real(device), *rest), kwargs
        if kwargs.get("device") is None:
            return None, args, kwargs
        return torch.device(kwargs["device"]), args, kwargs | {"device": self._real(kwargs["device"])}

    def _real(self, device: str | torch.device | int) -> torch.device:
        return CPU if torch.device(device).type == self.device.type else torch.device(device)


def _is_there(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "is_there", False)


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "is_pinned_there", False)


def _is_overlapped(on_host: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a copy from or to the host goes on while both compute."""
    return kwargs.get("non_blocking", False) and _is_pinned(on_host)


def _put_there(value: Any) -> Any:
    if isinstance(value, Tensor):
        value.untyped_storage().is_there = True
    return value


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))
