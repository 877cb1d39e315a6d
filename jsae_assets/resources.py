"""The compute resource: the device, the precision, how many tokens are processed at once, and a cache of the models,
pairs and activations that a run needs more than once. Also the folders for downloaded files.

Here: choosing the device; loading each model and each pair, and running a model over its tokens, once per run. Not
here: what is measured.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from weakref import WeakValueDictionary

import dagster as dg
from pydantic import AfterValidator, Field, PrivateAttr

from jsae_assets.devices import reserved_device
from jsae_assets.files.stored import StoredTensors
from jsae_assets.sections import project_path
from jsae_core.memory import MemoryBudget, keep_freed_memory, usual_batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair

T = TypeVar("T")
POOL = "gpu"  # of all assets that compute; dagster.yaml limits it to one step at a time, jsae ui to one per device
DEVICES = "auto, cuda, cuda:N, mps or cpu"
FEWEST_TOKENS = 64  # at once: if even so few do not fit in memory, their number is not the cause
# The models in use in this process. Dagster makes a resource of its own for each run, but code around a run, such as
# `jsae suggest-lambda`, may use the same model.
_models_in_use: WeakValueDictionary[Hashable, LanguageModel] = WeakValueDictionary()


def _file_times(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the name, size and time of each file of a directory, by which a changed model is noticed. Nothing for the
    name of a model on the hub."""
    if not directory.is_dir():
        return ()
    states = {path.name: path.stat() for path in sorted(directory.iterdir())}
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states.items())


def downloads_folder(instance: dg.DagsterInstance) -> Path:
    """Return the local folder for downloaded files, which has a subfolder for each service."""
    return Path(instance.storage_directory()).parent


def wandb_folder(instance: dg.DagsterInstance) -> Path:
    """Return the local folder for artifacts downloaded from wandb and for the files of wandb's client."""
    return downloads_folder(instance) / "wandb"


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"is {name!r}, expected {DEVICES}")
    return name


class Compute(dg.ConfigurableResource):
    """The settings of every computation: device, precision and memory. It also caches what a run has loaded."""

    device: Annotated[str, AfterValidator(_device)] = Field(default="auto", description=DEVICES)
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="how many tokens the model and the pair process at once (default: 4096; on CUDA up to four times "
        "as many, depending on its memory)",
    )
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="memory for the Jacobians of a histogram; those that do not fit go to a temporary file (default: "
        "0.5 on a CPU, up to 8 on CUDA). The same amount again is for the MLP's inputs; those that do not fit are "
        "computed again when they are needed (default: a quarter of the free memory)",
    )
    checkpoint_seconds: float = Field(
        default=60,
        ge=0,
        description="seconds between the checkpoints of a long step; it loses at most that much work when it is killed",
    )
    wandb_project: Annotated[str, AfterValidator(project_path)] | None = Field(
        default=None,
        description="the wandb project (entity/project) in which the losses of trainings are logged; with "
        "WANDB_MODE=offline they are kept on this machine for `wandb sync`",
    )
    _cache: dict[str, dict[Hashable, Any]] = PrivateAttr(default_factory=dict)  # by kind, then by key
    # the number of the CUDA device that the current step, or the one before, has reserved, if there are several devices
    _own: int | None = PrivateAttr(default=None)
    _halvings: int = PrivateAttr(default=0)
    _log: Any = PrivateAttr(default=None)  # the run's log; None outside a run

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Prepare the process that computes; Dagster calls this there before the first step."""
        keep_freed_memory()
        self._log = context.log

    def say(self, sentence: str) -> None:
        """Write a sentence to the run's log or, outside a run, to the screen."""
        print(sentence, flush=True) if self._log is None else self._log.info(sentence)

    def torch_device(self) -> torch.device:
        """Return the device to use.

        Raises:
            RuntimeError: the setting names a device that this machine does not have.
        """
        import torch

        cuda = torch.device("cuda") if self._own is None else torch.device("cuda", self._own)
        if self.device == "auto":
            if torch.cuda.is_available():
                return cuda
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        device = cuda if self.device == "cuda" else torch.device(self.device)
        if device.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (device.index or 0) >= count:
                raise RuntimeError(
                    f"the setting device (JSAE_DEVICE) asks for {self.device}, but PyTorch finds {count} CUDA "
                    f"device{'s' * (count != 1)} on this machine; set it to auto or cpu"
                )
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError(
                "the setting device (JSAE_DEVICE) asks for mps, which this machine does not have; set it to auto or cpu"
            )
        return device

    def lacks(self) -> str | None:
        """Return a sentence if the setting names a device that this machine does not have, else None. It imports torch
        only where a machine may lack the device."""
        if self.device in ("auto", "cpu"):
            return None
        try:
            self.torch_device()
        except RuntimeError as error:
            return str(error)
        return None

    def cuda_devices(self) -> int:
        """Return how many CUDA devices of this machine the steps may compute on."""
        if self.device not in ("auto", "cuda"):
            return 0
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    @contextlib.contextmanager
    def device_of_its_own(self) -> Iterator[None]:
        """Context manager that reserves a device on which no other process computes, if this machine has several. It
        prefers the device that was reserved last, because models and pairs are already loaded there."""
        count = self.cuda_devices()
        if count < 2:
            yield
            return
        with reserved_device(count, self._own) as self._own:
            yield

    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)

    def describe(self) -> str:
        """Return the device's name, with a note if it was chosen automatically."""
        import torch

        device = self.torch_device()
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        return f"{name}, chosen by auto" if self.device == "auto" else name

    @property
    def memory_bytes(self) -> int | None:
        """`memory_gib` in bytes."""
        return None if self.memory_gib is None else round(self.memory_gib * 2**30)

    @property
    def most_tokens_at_once(self) -> int:
        """How many tokens the model and the pair process at once as long as memory suffices."""
        return self.batch_tokens or usual_batch(self.torch_device())

    @property
    def tokens_at_once(self) -> int:
        """How many tokens the model and the pair process at once: `most_tokens_at_once`, halved each time memory ran
        out."""
        return max(1, self.most_tokens_at_once >> self._halvings)

    def fitting(self, compute: Callable[[], T], say: Callable[[str], None]) -> T:
        """Return `compute()`. If the device runs out of memory, call it again with half as many tokens at once
        (`tokens_at_once`), which then holds for the rest of the run.

        Raises:
            torch.OutOfMemoryError: the memory does not suffice even for `FEWEST_TOKENS` tokens at once.
        """
        import torch

        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.tokens_at_once // 2 < FEWEST_TOKENS:
                    raise
            # outside the except block: an error that is being handled keeps all tensors of its stack frames alive
            before = self.tokens_at_once
            self._halvings += 1
            self._cache.pop("MLP inputs", None)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            say(
                f"out of memory on {self.torch_device()} with {before:,} tokens at once: beginning again with "
                f"{self.tokens_at_once:,} (set JSAE_BATCH_TOKENS={self.tokens_at_once} to begin with that number)"
            )

    def cached(self, kind: str, key: Hashable, make: Callable[[], T], at_most: int | None = None) -> T:
        """Return `make()`, called once per run for each kind and key. With `at_most`, only that many objects of the
        kind are kept; the oldest is dropped before another one is made."""
        objects = self._cache.setdefault(kind, {})
        if key not in objects:
            while at_most is not None and len(objects) >= at_most:
                del objects[next(iter(objects))]
            objects[key] = make()
        return objects[key]

    def language_model(
        self,
        source: tuple[str | Path, str | None],
        randomise_seed: int | None = None,
        randomised_weights: str | None = None,
    ) -> LanguageModel:
        """Return a model of the catalog, named by its `source`, or its twin with randomised weights. It is loaded once
        per run, and not at all while something else in this process uses it."""
        from jsae_core import load_language_model

        name, revision = source
        arguments = (name, self.torch_device(), self.dtype, randomise_seed, randomised_weights, revision)

        def in_use_or_loaded() -> LanguageModel:
            key = (*arguments, _file_times(Path(name)))
            language_model = _models_in_use.get(key)
            if language_model is None:
                language_model = _models_in_use[key] = load_language_model(*arguments, say=self.say)
            return language_model

        return self.cached("language model", arguments, in_use_or_loaded)

    def pair(self, stored: StoredTensors, jacobian_tables: str | None = None) -> SAEPair:
        """Return a stored pair on the device and in the precision of the language model. Only the last pair is kept in
        memory, with the tables of its Jacobian, since a run takes all measures of a pair one after the other.

        Args:
            jacobian_tables: the dtype of the tables; None for that of the pair.
        """
        import torch

        from jsae_core import SAEPair

        device, dtype = self.torch_device(), self.torch_dtype()
        tables = getattr(torch, jacobian_tables) if jacobian_tables else None

        def loaded() -> SAEPair:
            return SAEPair.load(stored.local, device=device, table_dtype=tables).to(dtype)

        return self.cached("pair", (stored.version, device, dtype, tables), loaded, at_most=1)

    def memory_in_use(self) -> str:
        """Return a sentence on the models, pairs and tables that this run keeps on the device, with their sizes; "" if
        there are none."""
        from jsae_core.memory import in_bytes, weights_bytes

        models = {
            f"the language model {model.name}": weights_bytes(model.hugging_face)
            for model in self._cache.get("language model", {}).values()
        }
        pairs = list(self._cache.get("pair", {}).values())
        sizes = models | {"the pair": sum(map(weights_bytes, pairs)), "its tables": sum(p.tables_bytes for p in pairs)}
        listed = ", ".join(f"{name} ({in_bytes(size)})" for name, size in sizes.items() if size)
        return f"This run keeps in the memory of {self.torch_device()}: {listed}" if listed else ""

    def mlp_inputs(
        self,
        language_model: LanguageModel,
        layer: int,
        key: Hashable,
        documents: Callable[[], Sequence[Tensor]],
        sources: Sequence[int] | None = None,
    ) -> MLPInputs:
        """Return the MLP's inputs over the documents that `key` identifies, with their sources. All measures of a run
        share them, so the model computes each input once, as far as memory allows."""
        from jsae_core import MLPInputs

        device = self.torch_device()
        budget = self.cached("budget", device, lambda: MemoryBudget(device, self.memory_bytes))
        return self.cached(
            "MLP inputs",
            (language_model, layer, key),
            lambda: MLPInputs(language_model, documents(), layer, self.tokens_at_once, budget, sources=sources),
        )
