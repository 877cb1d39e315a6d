"""The pair: two SAELens TopK SAEs with a frozen MLP between them, and the published artifact format.

Here: `SAEPair`, its configuration, its tables, its latents, reading and writing. Not here: where an artifact comes
from (`artifacts.py`), the Jacobian (`jacobian.py`), training (`training.py`).

The artifact is a directory with `sae_weights.safetensors` and `cfg.json`. One file with the same tensors and the
configuration in its safetensors header (key "cfg") is read as well: that is how the asset graph stores a pair.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn

from jsae_core.memory import available_bytes, fitting, piece_factor
from jsae_core.mlp import MLP, activation_function
from jsae_core.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from jsae_core.language_model import LanguageModel

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
INPUT_CONVENTION = "the MLP's true input: normalisation with its gain and bias, weights unprocessed"
SAE_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
MLP_WEIGHTS = ("W_in", "b_in", "W_out", "b_out", "W_gate", "b_gate")
PRE_ACTIVATION_BYTES = 128 * 2**20  # fewer rows at once make the product with the encoder slower
RENAMED_KEYS = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
    "use_jacobian_loss": "is_pair",
}


@dataclass(frozen=True)
class PairConfig:
    """What a pair is and how it was trained. `extra` keeps every other key of its cfg.json, unread."""

    model_name: str
    layer: int
    d_in: int
    d_sae: int
    k: int
    jacobian_coefficient: float = 0.0
    dtype: str = "float32"
    apply_b_dec_to_input: bool = True
    prepend_bos: bool = True
    context_size: int | None = None
    randomize_llm_weights: bool = False
    mlp_activation: str | None = None
    input_convention: str = INPUT_CONVENTION
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @classmethod
    def from_published(cls, published: Mapping[str, Any]) -> PairConfig:
        """Read a cfg.json, old key names and absent defaults included.

        Raises:
            ValueError: a key is missing or has a value that no pair can have.
        """
        values = {RENAMED_KEYS.get(key, key): value for key, value in published.items()}
        kwargs = values.pop("activation_fn_kwargs", None) or {}
        if "k" not in kwargs:
            raise ValueError("activation_fn_kwargs.k is missing; it is the k of TopK")
        missing = [key for key in ("model_name", "hook_layer", "d_in", "d_sae") if key not in values]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        normalisation = values.pop("normalize_activations", "none")
        if normalisation != "none":
            raise ValueError(f"normalize_activations is {normalisation!r}; only 'none' is supported")
        known = {
            "layer": values.pop("hook_layer"),
            "k": kwargs["k"],
            "dtype": str(values.pop("dtype", "float32")).removeprefix("torch."),
        }
        for key in cls.__dataclass_fields__.keys() - known.keys() - {"extra"}:
            if key in values:
                known[key] = values.pop(key)
        config = cls(**known, extra=values)
        config._check()
        return config

    def _check(self) -> None:
        for name, least in (("layer", 0), ("d_in", 1), ("d_sae", 1), ("k", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, larger than d_sae, {self.d_sae}")
        coefficient = self.jacobian_coefficient
        if not isinstance(coefficient, (int, float)) or not 0 <= coefficient < math.inf:
            raise ValueError(f"jacobian_coefficient is {coefficient!r}, expected a number of at least 0")
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype is {self.dtype!r}, expected float32, bfloat16 or the like")
        if self.mlp_activation is not None:
            activation_function(self.mlp_activation)

    def to_published(self) -> dict[str, Any]:
        """The cfg.json of this pair, in the newer of the published key names."""
        return {
            "hook_name": f"blocks.{self.layer}.ln2.hook_normalized",
            "hook_head_index": None,
            "architecture": "standard",
            "is_pair": True,
            "activation_fn_str": "topk",
            **self.extra,
            "model_name": self.model_name,
            "hook_layer": self.layer,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "activation_fn_kwargs": {"k": self.k},
            "jacobian_coefficient": self.jacobian_coefficient,
            "dtype": self.dtype,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "prepend_bos": self.prepend_bos,
            "context_size": self.context_size,
            "randomize_llm_weights": self.randomize_llm_weights,
            "mlp_activation": self.mlp_activation,
            "input_convention": self.input_convention,
        }


class Tables(NamedTuple):
    """The rows the Jacobian is built from (`jacobian.py` derives them). One row a latent, so that a token's rows are
    gathered contiguously."""

    inputs: Tensor  # [d_sae, branches * d_mlp]: W_dec_in W_b, the MLP's branches side by side
    outputs: Tensor  # [d_sae, d_mlp]: (W_out W_enc_out)^T


class SAEPair(nn.Module):
    """Two TopK SAEs around a frozen MLP.

    Attributes:
        config: PairConfig.
        input_sae, output_sae: SAELens TopKSAE; W_enc [d_in, d_sae], W_dec [d_sae, d_in].
        mlp: the frozen MLP between them.
    """

    def __init__(self, config: PairConfig, input_sae: TopKSAE, output_sae: TopKSAE, mlp: MLP):
        super().__init__()
        self.config = config
        self.input_sae = input_sae
        self.output_sae = output_sae
        self.mlp = mlp
        self.requires_grad_(False)
        self._tables: tuple[Any, Tables, tuple[Tensor, ...]] | None = None
        self._rows_built = 0

    @property
    def device(self) -> torch.device:
        return self.input_sae.W_enc.device

    def tables(self) -> Tables:
        """The Jacobian's two tables, built at first use and again when a weight was replaced, moved or changed.

        Raises:
            MemoryError: the device has no room for them.
        """
        if not self._tables_are_built():
            self._tables = None  # free the old ones first: they are the largest thing here
            available = available_bytes(self.device)
            if available is not None and self.tables_bytes > available:
                raise MemoryError(
                    f"the tables that this pair's Jacobians are made of take {self.tables_bytes / 1e9:.1f} GB, but "
                    f"{self.device} has {available / 1e9:.1f} GB left; compute on another device (JSAE_DEVICE in the "
                    "asset graph), with fewer digits (JSAE_DTYPE=bfloat16), or with nothing else beside it"
                )
            with torch.no_grad():
                tables = build_tables(self.input_sae.W_dec, self.output_sae.W_enc, self.mlp)
            # the weights are kept with them, so that no later weight can come to lie at the same address
            self._tables = (self._weights_state(), tables, tuple(weight.detach() for weight in self._table_weights()))
            self._rows_built = 0
        return self._tables[1]

    @torch.no_grad()
    def table_rows(self, input_latents: Tensor, output_latents: Tensor) -> tuple[Tables, Tensor, Tensor]:
        """Tables that hold the rows of these latents, and the rows they are in (shaped like the latents).

        Where the tables are not built, only the rows asked for are, until these have been as many as the tables have:
        a prompt's Jacobians need a few of them, and the tables take minutes for the largest pairs."""
        asked = max(input_latents.numel(), output_latents.numel())
        if self._tables_are_built() or self._rows_built + asked > self.config.d_sae:
            return self.tables(), input_latents, output_latents
        self._rows_built += asked
        (inputs, input_rows), (outputs, output_rows) = (
            latents.unique(return_inverse=True) for latents in (input_latents, output_latents)
        )
        rows = build_tables(self.input_sae.W_dec[inputs], self.output_sae.W_enc[:, outputs], self.mlp)
        return rows, input_rows, output_rows

    def _table_weights(self) -> tuple[Tensor, ...]:
        return (self.input_sae.W_dec, self.output_sae.W_enc, self.mlp.W_out, *self.mlp.branches)

    def _weights_state(self) -> tuple:
        return tuple(
            (weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in self._table_weights()
        )

    def _tables_are_built(self) -> bool:
        return self._tables is not None and self._tables[0] == self._weights_state()

    @property
    def tables_bytes(self) -> int:
        """What the tables take, built or not."""
        d_mlp, branches = self.mlp.W_in.shape[1], len(self.mlp.branches)
        return self.config.d_sae * d_mlp * (branches + 1) * self.mlp.W_in.element_size()

    def _apply(self, fn, recurse: bool = True) -> SAEPair:
        """What `to`, `double` and their like call. SAELens keeps dtype and device beside an SAE's weights, and only
        the SAE's own `to` keeps them in step."""
        super()._apply(fn, recurse)
        for sae in (self.input_sae, self.output_sae):
            sae.to(sae.W_enc.device, sae.W_enc.dtype)
        self.config = replace(self.config, dtype=self.input_sae.cfg.dtype)
        return self

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", language_model: LanguageModel | None = None
    ) -> SAEPair:
        """Read a published artifact directory, or a stored pair's one file.

        Args:
            language_model: gives the MLP's activation, and the MLP where the artifact lacks it. Without one, both must
                be in the artifact, as `save` writes them.

        Raises:
            FileNotFoundError: the directory or one of its files is missing.
            ValueError: a file is truncated, a tensor missing, of the wrong shape or not finite, or the configuration
                makes no sense. The message names the file.
            MemoryError: the device has no room for the pair.
        """
        path = Path(path)
        weights_path = path / WEIGHTS_FILE if path.is_dir() else path
        if not weights_path.is_file():
            raise FileNotFoundError(
                f"{weights_path} is missing; expected an artifact directory with {WEIGHTS_FILE} and {CONFIG_FILE}, "
                "or the one .safetensors file of a stored pair"
            )
        tensors, header = read_tensors(weights_path)
        if path.is_dir():
            config_path = path / CONFIG_FILE
            if not config_path.is_file():
                raise FileNotFoundError(f"{config_path} is missing; it holds the pair's configuration")
            written = config_path.read_bytes()
        elif "cfg" in header:
            config_path, written = path, header["cfg"]
        else:
            raise ValueError(f"{path}: its header has no 'cfg', so it is no stored pair; pass the artifact directory")
        try:
            config = PairConfig.from_published(_json_object(written))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{config_path}: {error}") from error
        try:
            pair = cls.from_tensors(tensors, config, language_model)
        except ValueError as error:
            raise ValueError(f"{weights_path}: {error}") from error
        with fitting(f"the pair {path}", device):
            return pair.to(device)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], config: PairConfig, language_model: LanguageModel | None = None
    ) -> SAEPair:
        """A pair from tensors under their published names. Raises ValueError as `load` does."""
        dtype = config.torch_dtype
        shapes = {
            "W_enc": (config.d_in, config.d_sae),
            "b_enc": (config.d_sae,),
            "W_dec": (config.d_sae, config.d_in),
            "b_dec": (config.d_in,),
        }
        expected = {f"_{name}{side}": shapes[name] for side in ("", "_out") for name in SAE_WEIGHTS}
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise ValueError(f"tensors missing: {', '.join(missing)}; there are {', '.join(sorted(tensors))}")
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape} by its config")
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds {int((~torch.isfinite(tensor)).sum())} NaN or infinite values")
        mlp = _mlp({name: tensor.to(dtype) for name, tensor in tensors.items()}, config, language_model)
        config = replace(config, mlp_activation=mlp.activation)
        return cls(config, _sae(tensors, "", config), _sae(tensors, "_out", config), mlp)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the artifact, under its published name, on the CPU."""
        named = {
            f"_{name}{side}": getattr(sae, name)
            for side, sae in (("", self.input_sae), ("_out", self.output_sae))
            for name in SAE_WEIGHTS
        } | {f"mlp.{name}": getattr(self.mlp, name) for name in MLP_WEIGHTS if hasattr(self.mlp, name)}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def save(self, directory: str | Path) -> None:
        """Write the artifact directory. Both files are written beside their places first, then moved there."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        staged = {name: directory / f".{name}.{os.getpid()}.part" for name in (WEIGHTS_FILE, CONFIG_FILE)}
        try:
            write_tensors(self.tensors(), staged[WEIGHTS_FILE])
            staged[CONFIG_FILE].write_text(json.dumps(self.config.to_published(), indent=2), encoding="utf-8")
            for name, part in staged.items():
                part.replace(directory / name)
        finally:
            for part in staged.values():
                part.unlink(missing_ok=True)


def build_tables(W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP) -> Tables:
    """Both tables: 2 * d_sae * d_model * d_mlp multiply-adds (3 for a gated MLP)."""
    return Tables(inputs=W_dec_in @ torch.cat(mlp.branches, dim=1), outputs=W_enc_out.T @ mlp.W_out.T)


def top_latents(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, d_in] -> the k largest pre-activations after ReLU, and their latents, in descending order: two [n, k].

    SAELens's own TopK neither sorts nor returns indices."""
    values, latents = top_pre_activations(sae, x, sae.cfg.k)
    return values.relu_(), latents


@torch.no_grad()
def top_pre_activations(sae: TopKSAE, x: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """x [n, d_in] -> the largest pre-activations and their latents, in descending order: two [n, n_latents].

    Rows are encoded some at a time, into memory that the next ones use again: for all rows at once it would have to be
    new, and new pages take a third as long as the product that fills them."""
    rows = inputs_at_once(sae)
    memory = x.new_empty(min(len(x), rows), sae.cfg.d_sae)
    parts = [torch.topk(pre_activations(sae, part, memory), n_latents, dim=-1) for part in x.split(rows)]
    return torch.cat([values for values, _ in parts]), torch.cat([latents for _, latents in parts])


@torch.no_grad()
def pre_activations(sae: TopKSAE, x: Tensor, memory: Tensor | None = None) -> Tensor:
    """x [n, d_in] -> all pre-activations [n, d_sae], in the first rows of `memory` where it is given."""
    out = x.new_empty(len(x), sae.cfg.d_sae) if memory is None else memory[: len(x)]
    return torch.addmm(sae.b_enc, sae.process_sae_in(x), sae.W_enc, out=out)


def inputs_at_once(sae: TopKSAE) -> int:
    """How many inputs to encode at once: their pre-activations, d_sae each, are the largest thing then."""
    at_once = piece_factor(sae.W_enc.device) * PRE_ACTIVATION_BYTES
    return max(1, at_once // (sae.cfg.d_sae * sae.W_enc.element_size()))


def decode(W_dec: Tensor, b_dec: Tensor, activations: Tensor, latents: Tensor) -> Tensor:
    """Reconstruction [n, d_in] from the k active latents alone: activations and latents [n, k]."""
    return F.embedding_bag(latents, W_dec, per_sample_weights=activations, mode="sum") + b_dec


def _json_object(written: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(written)
    except ValueError as error:
        raise ValueError(f"the configuration is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"the configuration is a JSON {type(values).__name__}, expected an object of settings")
    return values


def _sae(tensors: Mapping[str, Tensor], side: str, config: PairConfig) -> TopKSAE:
    # Built on the meta device: SAELens would initialise weights that are thrown away at once.
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=config.d_in,
            d_sae=config.d_sae,
            k=config.k,
            dtype=config.dtype,
            device="meta",
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            normalize_activations="none",
        )
    )
    weights = {name: tensors[f"_{name}{side}"].to(config.torch_dtype) for name in SAE_WEIGHTS}
    sae.load_state_dict(weights, assign=True)
    sae.cfg.device = str(weights["W_enc"].device)
    sae.device = weights["W_enc"].device
    sae.cfg.metadata.model_name = config.model_name
    sae.cfg.metadata.hook_name = f"blocks.{config.layer}.mlp.{'hook_out' if side else 'hook_in'}"
    sae.cfg.metadata.prepend_bos = config.prepend_bos
    return sae


def _mlp(tensors: Mapping[str, Tensor], config: PairConfig, language_model: LanguageModel | None) -> MLP:
    stored = {name: tensors[f"mlp.{name}"] for name in MLP_WEIGHTS if f"mlp.{name}" in tensors}
    of_model = None if language_model is None else language_model.mlp(config.layer).to("cpu", config.torch_dtype)
    if of_model is not None and of_model.W_in.shape[0] != config.d_in:
        raise ValueError(
            f"the pair's d_in is {config.d_in}, but {language_model.name} has d_model {of_model.W_in.shape[0]}: "
            f"they do not belong together (the pair was trained on {config.model_name})"
        )
    if not stored:
        if of_model is None:
            raise ValueError(
                "holds no MLP (mlp.W_in and the rest), and no language model was given to take it from; pass "
                f"language_model=load_language_model({config.model_name!r})"
            )
        return of_model
    # gated models mostly have no biases; a plain one without them has lost them
    gated = "W_gate" in stored or "b_gate" in stored
    required = ("W_in", "W_gate", "W_out") if gated else ("W_in", "b_in", "W_out", "b_out")
    missing = [f"mlp.{name}" for name in required if name not in stored]
    if missing:
        raise ValueError(f"tensors missing: {', '.join(missing)}, while other mlp.* tensors are there")
    if stored["W_in"].ndim != 2 or stored["W_in"].shape[0] != config.d_in:
        raise ValueError(f"mlp.W_in has shape {tuple(stored['W_in'].shape)}, expected ({config.d_in}, d_mlp)")
    if of_model is not None:
        _check_same_mlp(stored, of_model, language_model.name)
        if config.mlp_activation not in (None, of_model.activation):
            raise ValueError(
                f"the pair's MLP activation is {config.mlp_activation!r}, but {language_model.name}'s is "
                f"{of_model.activation!r}: they do not belong together"
            )
        return MLP(activation=of_model.activation, **stored)
    if config.mlp_activation is None:
        raise ValueError(
            "the artifact names no MLP activation, and no language model was given to take it from; pass "
            f"language_model=load_language_model({config.model_name!r})"
        )
    return MLP(activation=config.mlp_activation, **stored)


def _check_same_mlp(stored: Mapping[str, Tensor], of_model: MLP, model_name: str) -> None:
    weights = dict(of_model.named_buffers(recurse=False))  # a bias that the artifact leaves out counts as zeros
    for name in (name for name in MLP_WEIGHTS if name in weights or name in stored):
        theirs = weights.get(name)
        ours = stored.get(name, None if theirs is None else torch.zeros_like(theirs))
        same_shape = theirs is not None and theirs.shape == ours.shape
        # 1% of the largest weight: far above the rounding of bfloat16, far below another model's weights
        if not same_shape or (ours - theirs).abs().max() > 0.01 * theirs.abs().max().clamp(min=1e-3):
            raise ValueError(
                f"mlp.{name} differs from {model_name}'s own: this pair and this language model do not belong "
                "together (another model, layer or revision, or weights that were folded or randomised)"
            )
