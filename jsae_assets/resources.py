"""The compute resource: which device, which precision, how many tokens at once, and the models a run has loaded; and
the folder for what comes from wandb.

Here: choosing the device and loading each model once a run. Not here: what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import dagster as dg
from pydantic import Field, PrivateAttr

from jsae_core.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

    from jsae_core import LanguageModel

T = TypeVar("T")
POOL = "gpu"  # the assets that compute share it; dagster.yaml limits it to one at a time


def downloads_folder(instance: dg.DagsterInstance) -> Path:
    """Where what is fetched from elsewhere is kept on this machine, in a folder for each service."""
    return Path(instance.storage_directory()).parent


def wandb_folder(instance: dg.DagsterInstance) -> Path:
    """Where wandb's client and what is fetched from there keep their files on this machine."""
    return downloads_folder(instance) / "wandb"


class Compute(dg.ConfigurableResource):
    """Where the core computes."""

    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cuda, cuda:N, mps or cpu"
    )
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    batch_tokens: int = Field(default=4096, ge=1, description="tokens the model and the pair are given at once")
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="for the Jacobians of a histogram; those that do not fit go to a temporary file. Unset: 0.5 on a "
        "CPU, up to 8 on CUDA",
    )
    _kept: dict[Hashable, Any] = PrivateAttr(default_factory=dict)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """What Dagster calls in the process that computes."""
        keep_freed_memory()

    def torch_device(self) -> torch.device:
        """The device to use.

        Raises:
            RuntimeError: a device was named that this machine does not have.
        """
        import torch

        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (device.index or 0) >= count:
                raise RuntimeError(
                    f"the compute resource asks for {self.device}, but this machine has {count} CUDA devices; set its "
                    "device (JSAE_DEVICE) to auto or cpu"
                )
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("the compute resource asks for mps, which this machine does not have; set JSAE_DEVICE")
        return device

    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)

    def describe(self) -> str:
        """The device in words, and why this one where it was chosen here."""
        import torch

        device = self.torch_device()
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        return f"{name}, chosen by auto" if self.device == "auto" else name

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made at first use and kept for the rest of the run."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def kept_last(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, kept until another of its kind is asked for."""
        if self._kept.get(kind, (None, None))[0] != key:
            self._kept.pop(kind, None)  # frees the old one before the new one is made
            self._kept[kind] = (key, make())
        return self._kept[kind][1]

    def language_model(
        self, source: str, randomise_seed: int | None = None, randomised_weights: str | None = None
    ) -> LanguageModel:
        """The model from a hub name or directory, or its randomised twin; loaded once a run."""
        from jsae_core import load_language_model

        named = (source, self.torch_device(), self.dtype, randomise_seed, randomised_weights)
        return self.kept(("language model", *named), lambda: load_language_model(*named))
