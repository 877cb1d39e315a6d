"""The compute resource: which device, which precision, how many tokens at once, and what a run has loaded or computed
and will need again; and the folder for what comes from wandb.

Here: choosing the device; loading each model and each pair, and running a model over its tokens, once a run. Not here:
what is measured.
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

from jsae_assets.devices import one_of
from jsae_assets.sections import project_path
from jsae_assets.stored import StoredTensors
from jsae_core.memory import MemoryBudget, keep_freed_memory, usual_batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair

T = TypeVar("T")
POOL = "gpu"  # the assets that compute share it; dagster.yaml limits it to one at a time, jsae ui to one a device
DEVICES = "auto, cuda, cuda:N, mps or cpu"
LEAST_TOKENS = 64  # at once: where even so few do not fit, it is not for their number
# Dagster makes a run its own resource. What is around a run, as `jsae suggest-lambda` is, may hold the same model.
_held: WeakValueDictionary[Hashable, LanguageModel] = WeakValueDictionary()


def downloads_folder(instance: dg.DagsterInstance) -> Path:
    """Where what is fetched from elsewhere is kept on this machine, in a folder for each service."""
    return Path(instance.storage_directory()).parent


def wandb_folder(instance: dg.DagsterInstance) -> Path:
    """Where wandb's client and what is fetched from there keep their files on this machine."""
    return downloads_folder(instance) / "wandb"


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"is {name!r}, expected {DEVICES}")
    return name


class Compute(dg.ConfigurableResource):
    """Where the core computes."""

    device: Annotated[str, AfterValidator(_device)] = Field(default="auto", description=DEVICES)
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens the model and the pair are given at once (unset: 4096, on CUDA up to four times as many, "
        "by its memory)",
    )
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="for the Jacobians of a histogram, of which those that do not fit go to a temporary file (unset: "
        "0.5 on a CPU, up to 8 on CUDA), and as much for the MLP's inputs, of which those that do not fit are computed "
        "again (unset: a quarter of what is free)",
    )
    checkpoint_seconds: float = Field(
        default=60, ge=0, description="at most so much work of a long step is lost when it is killed"
    )
    wandb_project: Annotated[str, AfterValidator(project_path)] | None = Field(
        default=None,
        description="entity/project, in which the losses of what is trained are logged; WANDB_MODE=offline keeps them "
        "here for `wandb sync`",
    )
    _cache: dict[str, dict[Hashable, Any]] = PrivateAttr(default_factory=dict)  # by kind
    _own: int | None = PrivateAttr(default=None)  # of several CUDA devices, the one that a step holds or held last
    _halvings: int = PrivateAttr(default=0)
    _log: Any = PrivateAttr(default=None)  # that of the run

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """What Dagster calls in the process that computes."""
        keep_freed_memory()
        self._log = context.log

    def say(self, sentence: str) -> None:
        """To the run's log; where there is no run, on the screen."""
        print(sentence, flush=True) if self._log is None else self._log.info(sentence)

    def torch_device(self) -> torch.device:
        """The device to use.

        Raises:
            RuntimeError: a device was named that this machine does not have.
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
                    f"the compute resource asks for {self.device}, but this machine has {count} CUDA devices; set its "
                    "device (JSAE_DEVICE) to auto or cpu"
                )
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("the compute resource asks for mps, which this machine does not have; set JSAE_DEVICE")
        return device

    def cuda_devices(self) -> int:
        """How many CUDA devices of this machine its steps may compute on."""
        if self.device not in ("auto", "cuda"):
            return 0
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    @contextlib.contextmanager
    def device_of_its_own(self) -> Iterator[None]:
        """While it is entered, the device is one of several on which no other process computes: the last one again if
        it is free, as what is loaded is there."""
        count = self.cuda_devices()
        if count < 2:
            yield
            return
        with one_of(count, self._own) as self._own:
            yield

    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)

    def describe(self) -> str:
        """The device in words, and why this one where it was chosen here."""
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
        """How many tokens the model and the pair are given at once as long as memory suffices."""
        return self.batch_tokens or usual_batch(self.torch_device())

    @property
    def tokens_at_once(self) -> int:
        """The same, halved where memory ran out."""
        return max(1, self.most_tokens_at_once >> self._halvings)

    def fitting(self, compute: Callable[[], T], say: Callable[[str], None]) -> T:
        """What `compute` gives. Where the device's memory does not suffice it is computed again, with half as many
        tokens at once, as is everything after it in this run.

        Raises:
            torch.OutOfMemoryError: it does not suffice for few tokens either.
        """
        import torch

        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.tokens_at_once // 2 < LEAST_TOKENS:
                    raise
            # out of the handler: as long as there is an error, there is everything that its frames hold
            before = self.tokens_at_once
            self._halvings += 1
            self._cache.pop("MLP inputs", None)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            say(
                f"out of memory on {self.torch_device()} with {before:,} tokens at once: beginning again with "
                f"{self.tokens_at_once:,} (JSAE_BATCH_TOKENS={self.tokens_at_once} would begin with these)"
            )

    def cached(self, kind: str, key: Hashable, make: Callable[[], T], at_most: int | None = None) -> T:
        """What `make` gives, made once a run for each key. Where only so many of a kind are held at once, the oldest
        goes before another one is made."""
        held = self._cache.setdefault(kind, {})
        if key not in held:
            while at_most is not None and len(held) >= at_most:
                del held[next(iter(held))]
            held[key] = make()
        return held[key]

    def language_model(
        self,
        source: tuple[str | Path, str | None],
        randomise_seed: int | None = None,
        randomised_weights: str | None = None,
    ) -> LanguageModel:
        """A model of the catalog (its `source`), or its randomised twin; loaded once a run, and not at all while
        somebody else in this process holds it."""
        from jsae_core import load_language_model

        name, revision = source
        named = (name, self.torch_device(), self.dtype, randomise_seed, randomised_weights, revision)

        def held_or_loaded() -> LanguageModel:
            language_model = _held.get(named)
            if language_model is None:
                language_model = _held[named] = load_language_model(*named, say=self.say)
            return language_model

        return self.cached("language model", named, held_or_loaded)

    def pair(self, stored: StoredTensors, jacobian_tables: str | None = None) -> SAEPair:
        """The pair, where and in the precision in which the language model computes. The last one is held, with the
        tables of its Jacobian: what is measured on a pair is measured in a row.

        Args:
            jacobian_tables: the dtype of these; None: that of the pair.
        """
        import torch

        from jsae_core import SAEPair

        device, dtype = self.torch_device(), self.torch_dtype()
        tables = getattr(torch, jacobian_tables) if jacobian_tables else None

        def loaded() -> SAEPair:
            return SAEPair.load(stored.local, device=device, table_dtype=tables).to(dtype)

        return self.cached("pair", (stored.version, device, dtype, tables), loaded, at_most=1)

    def held(self) -> str:
        """What this run holds on the device beside what it computes, in words; "" if nothing."""
        from jsae_core.memory import in_words, weights_bytes

        models = {
            f"the language model {model.name}": weights_bytes(model.hugging_face)
            for model in self._cache.get("language model", {}).values()
        }
        pairs = list(self._cache.get("pair", {}).values())
        sizes = models | {"the pair": sum(map(weights_bytes, pairs)), "its tables": sum(p.tables_bytes for p in pairs)}
        named = ", ".join(f"{name} ({in_words(size)})" for name, size in sizes.items() if size)
        return f"This run holds on {self.torch_device()}: {named}" if named else ""

    def mlp_inputs(
        self, language_model: LanguageModel, layer: int, key: Hashable, documents: Callable[[], Sequence[Tensor]]
    ) -> MLPInputs:
        """The MLP's inputs over some documents, which `key` names: all that read them in a run share what the model
        computes once, as far as there is memory."""
        from jsae_core import MLPInputs

        device = self.torch_device()
        budget = self.cached("budget", device, lambda: MemoryBudget(device, self.memory_bytes))
        return self.cached(
            "MLP inputs",
            (language_model, layer, key),
            lambda: MLPInputs(language_model, documents(), layer, self.tokens_at_once, budget),
        )
