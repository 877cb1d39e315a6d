"""The artifact format of a pair: its configuration, its files, and whether it belongs to a language model.

Here: `PairConfig` and cfg.json, the names of files and tensors, reading and writing them, the checks on what is read.
Not here: what a pair does (`sae_pair.py`), where an artifact comes from (`artifacts.py`).

The artifact is a directory with `sae_weights.safetensors` and `cfg.json`. One file with the same tensors and the
configuration in its safetensors header (key "cfg") is read as well: that is how the asset graph stores a pair.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jsae_core.mlp import MLP, activation_function
from jsae_core.sae import SAE_WEIGHTS, sae_shapes
from jsae_core.sealed_files import check_undamaged
from jsae_core.tensor_files import read_copies, read_tensors, write_tensors

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
LANGUAGE_MODEL_FILE = "randomized_llm_weights.safetensors"  # a third file, if the language model was randomised
INPUT_CONVENTION = "the MLP's true input: normalisation with its gain and bias, weights unprocessed"
SIDES = {"input": "", "output": "_out"}  # the suffix of the tensor names of each SAE
MLP_WEIGHTS = ("W_in", "b_in", "W_out", "b_out", "W_gate", "b_gate")
RENAMED_KEYS = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
    "use_jacobian_loss": "is_pair",
}
# For settings that other code varies but this code does not: the values that a configuration may have. An absent key
# means the first of its values; any other value would mean a function that is not computed here.
ONLY_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_fn_str": ("topk",),
    "architecture": ("standard", "topk"),
    "normalize_activations": ("none", False, None),
    "finetuning_scaling_factor": (False, None),
    "rescale_acts_by_decoder_norm": (False, None),
    "reshape_activations": ("none", None),
    "hook_head_index": (None,),
    "prepend_bos": (True,),
    "seqpos_slice": (None, [], [None], [None, None]),
    "is_pair": (True, False, None),
    "transcode": (False, None),  # this and the next two would make the pair a transcoder
    "is_transcoder": (False, None),
    "skip_connection": (False, None),
    "input_convention": (INPUT_CONVENTION,),
}
DTYPES = ("float32", "float64", "bfloat16", "float16")
# Arguments for loading the language model that change no weight and no activation.
HARMLESS_MODEL_ARGUMENTS = {"dtype", "torch_dtype", "device"}
MLP_INPUT_SITES = ("ln2.hook_normalized", "mlp.hook_in")


@dataclass(frozen=True)
class PairConfig:
    """What a pair is and how it was trained. `extra` keeps all other keys of its cfg.json, without using them."""

    model_name: str
    layer: int
    d_in: int
    d_sae: int
    k: int
    jacobian_coefficient: float = 0.0
    dtype: str = "float32"
    apply_b_dec_to_input: bool = True
    prepend_bos: bool = True
    trained_on_bos: bool = True  # true of the published pairs, whose configurations lack this key
    context_size: int | None = None
    randomize_llm_weights: bool = False
    mlp_activation: str | None = None
    input_convention: str = INPUT_CONVENTION
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @classmethod
    def from_artifact(cls, written: Mapping[str, Any]) -> PairConfig:
        """Read a cfg.json with older or newer key names, or in the layout of SAELens 6 (a top-level `k`, a section
        `metadata`). An optional key that is absent gets the value that its absence means in the published format.

        Raises:
            ValueError: a key is missing, has a value that no pair can have, or asks for something that is not computed
                here. The message names the key.
        """
        values = _flat(written)
        _check_supported(values)
        values.pop("normalize_activations", None)
        if values.get("is_pair") is False:
            values["jacobian_coefficient"] = 0.0  # the loss had no Jacobian term; the value in the file is a default
        k = _k(values)
        layer = _layer(values)
        missing = [key for key in ("model_name", "d_in", "d_sae") if key not in values]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        known = {"layer": layer, "k": k, "dtype": str(values.pop("dtype", "float32")).removeprefix("torch.")}
        for key in cls.__dataclass_fields__.keys() - known.keys() - {"extra"}:
            if key in values:
                known[key] = values.pop(key)
        config = cls(**known, extra=values)
        config._check()
        return config

    def _check(self) -> None:
        for name, least in (("layer", 0), ("d_in", 1), ("d_sae", 1), ("k", 1)):
            value = getattr(self, name)
            if not _is_whole(value) or value < least:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
        for name in ("apply_b_dec_to_input", "prepend_bos", "trained_on_bos", "randomize_llm_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected true or false")
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ValueError(f"model_name is {self.model_name!r}, expected a text")
        if self.extra.get("d_out", self.d_in) != self.d_in:
            raise ValueError(f"d_out is {self.extra['d_out']!r}, which is not supported; expected d_in, {self.d_in}")
        if self.context_size is not None and (not _is_whole(self.context_size) or self.context_size < 1):
            raise ValueError(f"context_size is {self.context_size!r}, expected a whole number of at least 1, or null")
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, larger than d_sae, {self.d_sae}")
        coefficient = self.jacobian_coefficient
        if (
            isinstance(coefficient, bool)
            or not isinstance(coefficient, (int, float))
            or not 0 <= coefficient < math.inf
        ):
            raise ValueError(f"jacobian_coefficient is {coefficient!r}, expected a number of at least 0")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, expected {' or '.join(DTYPES)}")
        if self.mlp_activation is not None and not isinstance(self.mlp_activation, str):
            raise ValueError(f"mlp_activation is {self.mlp_activation!r}, expected a text, or null")
        if self.mlp_activation is not None:
            activation_function(self.mlp_activation)

    def to_artifact(self) -> dict[str, Any]:
        """The cfg.json of this pair, under the newer key names of the artifact format."""
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
            "trained_on_bos": self.trained_on_bos,
            "context_size": self.context_size,
            "randomize_llm_weights": self.randomize_llm_weights,
            "mlp_activation": self.mlp_activation,
            "input_convention": self.input_convention,
        }


def _flat(written: Mapping[str, Any]) -> dict[str, Any]:
    """All settings at one level, under their newer names; top-level settings take precedence over `metadata`."""
    metadata = written.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata is {metadata!r}, expected an object of settings")
    top = {key: value for key, value in written.items() if key != "metadata"}
    return {RENAMED_KEYS.get(str(key), str(key)): value for key, value in (dict(metadata) | top).items()}


def _check_supported(values: Mapping[str, Any]) -> None:
    for key, supported in ONLY_SUPPORTED.items():
        # types are compared too, since 0 == False and 1 == True in Python
        if key in values and not any(type(values[key]) is type(s) and values[key] == s for s in supported):
            expected = " or ".join(json.dumps(value) for value in supported)
            raise ValueError(f"{key} is {values[key]!r}, which is not supported; expected {expected}")
    arguments = values.get("model_from_pretrained_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"model_from_pretrained_kwargs is {arguments!r}, expected an object of settings")
    for name, value in arguments.items():
        if value and name not in HARMLESS_MODEL_ARGUMENTS:
            raise ValueError(
                f"model_from_pretrained_kwargs.{name} is {value!r}, which is not supported: the language model is used "
                "as published, with unprocessed weights"
            )


def _k(values: dict[str, Any]) -> Any:
    """Remove the k of TopK from the settings, where it may have either of two names, and return it."""
    kwargs = values.pop("activation_fn_kwargs", None) or {}
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"activation_fn_kwargs is {kwargs!r}, expected an object with k")
    given = {"activation_fn_kwargs.k": kwargs.get("k"), "k": values.pop("k", None)}
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        raise ValueError("activation_fn_kwargs.k is missing; it is the k of TopK")
    if len(set(map(repr, given.values()))) > 1:
        raise ValueError(f"activation_fn_kwargs.k and k differ: {given}")
    return next(iter(given.values()))


def _layer(values: dict[str, Any]) -> Any:
    """Remove hook_layer from the settings and return it; if it is absent, take the layer from hook_name. If there is a
    hook_name, it must name the MLP's input."""
    layer, hook_name = values.pop("hook_layer", None), values.get("hook_name")
    if hook_name is None:
        if layer is None:
            raise ValueError("hook_layer missing")
        return layer
    site = re.fullmatch(r"blocks\.(\d+)\.(.+)", str(hook_name))
    if site is None or site[2] not in MLP_INPUT_SITES:
        expected = " or ".join(f"blocks.<layer>.{name}" for name in MLP_INPUT_SITES)
        raise ValueError(f"hook_name is {hook_name!r}, which is not supported; expected the MLP's input, {expected}")
    if _is_whole(layer) and layer != int(site[1]):
        raise ValueError(f"hook_layer is {layer!r}, but hook_name is {hook_name!r}")
    return int(site[1]) if layer is None else layer


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def tensor_name(side: str, weight: str) -> str:
    """The artifact name of an SAE's weight, such as `_W_enc_out`; `side` is "input" or "output"."""
    return f"_{weight}{SIDES[side]}"


def read_artifact(path: str | Path) -> tuple[dict[str, Tensor], PairConfig, Path]:
    """The tensors and the configuration of an artifact's directory or of a stored pair's one file, and the file
    that the tensors are in.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is truncated, a stored pair's file is not what its digest says, or the configuration makes
            no sense. The message names the file.
    """
    path = Path(path).expanduser()
    weights_path = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights_path.is_file():
        raise FileNotFoundError(
            f"{weights_path} is missing; expected an artifact directory with {WEIGHTS_FILE} and {CONFIG_FILE}, "
            "or the one .safetensors file of a stored pair"
        )
    if path.is_dir():
        tensors = read_copies(weights_path)
        config_path = path / CONFIG_FILE
        if not config_path.is_file():
            raise FileNotFoundError(f"{config_path} is missing; it holds the pair's configuration")
        written = config_path.read_bytes()
    else:
        tensors, header = read_tensors(path)  # nothing overwrites a stored file: a new one takes its place whole
        check_undamaged(path, header)
        if "cfg" not in header:
            raise ValueError(
                f"{path}: its header has no 'cfg', so it is not a stored pair; pass the artifact directory"
            )
        config_path, written = path, header["cfg"].encode()
    try:
        config = PairConfig.from_artifact(_json_object(written))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path}: {error}") from error
    return tensors, config, weights_path


def write_artifact(tensors: Mapping[str, Tensor], config: PairConfig, directory: str | Path) -> None:
    """Write the artifact directory. Both files are first written under temporary names, then moved into place."""
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    staged = {name: directory / f".{name}.{os.getpid()}.part" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    try:
        write_tensors(tensors, staged[WEIGHTS_FILE])
        staged[CONFIG_FILE].write_text(json.dumps(config.to_artifact(), indent=2), encoding="utf-8")
        for name, part in staged.items():
            part.replace(directory / name)
    finally:
        for part in staged.values():
            part.unlink(missing_ok=True)


def check_tensors(tensors: Mapping[str, Tensor], config: PairConfig) -> None:
    """Raises ValueError if a tensor of the SAEs is missing or its shape disagrees with the configuration, if a tensor
    holds whole numbers (as quantised weights do), NaN or infinite values, or if a tensor does not belong to a pair of
    TopK SAEs: thresholds, gates or scaling factors of latents, which the configuration does not always mention."""
    expected = {
        tensor_name(side, name): shape
        for side in SIDES
        for name, shape in sae_shapes(config.d_in, config.d_sae).items()
    }
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"tensors missing: {', '.join(missing)}; there are {', '.join(sorted(tensors))}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape} by its config")
    known = (*expected, *(f"mlp.{name}" for name in MLP_WEIGHTS))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}, expected numbers with fractions: {' or '.join(DTYPES)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds {int((~torch.isfinite(tensor)).sum())} NaN or infinite values")
        if "scaling_factor" in name:
            if not (tensor == 1).all():
                raise ValueError(f"{name} scales latents, which is not supported; expected none, or only ones")
        elif name not in known:
            raise ValueError(f"{name} does not belong to a pair of TopK SAEs, whose tensors are {', '.join(known)}")


def sae_weights(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """The weights of one SAE under their names in an SAE; `side` is "input" or "output"."""
    return {name: tensors[tensor_name(side, name)] for name in SAE_WEIGHTS}


def mlp_of(
    tensors: Mapping[str, Tensor], config: PairConfig, model_mlp: MLP | None = None, model_name: str = ""
) -> MLP:
    """The MLP between the SAEs: the artifact's own, or the language model's if the artifact has none.

    Args:
        model_mlp, model_name: the language model's MLP at the pair's layer, in the pair's dtype, and the model's name.

    Raises:
        ValueError: neither source has an MLP, or neither names its activation; tensors are missing or of another shape;
            or the artifact's MLP differs from the language model's.
    """
    stored = {name: tensors[f"mlp.{name}"] for name in MLP_WEIGHTS if f"mlp.{name}" in tensors}
    if model_mlp is not None and model_mlp.W_in.shape[0] != config.d_in:
        raise ValueError(
            f"the pair's d_in is {config.d_in}, but {model_name} has d_model {model_mlp.W_in.shape[0]}: "
            f"they do not belong together (the pair was trained on {config.model_name})"
        )
    if not stored:
        if model_mlp is None:
            raise ValueError(
                "holds no MLP (mlp.W_in and the rest), and no language model was given to take it from; pass "
                f"language_model=load_language_model({config.model_name!r})"
            )
        return model_mlp
    # most gated MLPs have no biases, but a plain one without biases is incomplete
    gated = "W_gate" in stored or "b_gate" in stored
    required = ("W_in", "W_gate", "W_out") if gated else ("W_in", "b_in", "W_out", "b_out")
    missing = [f"mlp.{name}" for name in required if name not in stored]
    if missing:
        raise ValueError(f"tensors missing: {', '.join(missing)}, while other mlp.* tensors are there")
    if stored["W_in"].ndim != 2 or stored["W_in"].shape[0] != config.d_in:
        raise ValueError(f"mlp.W_in has shape {tuple(stored['W_in'].shape)}, expected ({config.d_in}, d_mlp)")
    if model_mlp is not None:
        _check_same_mlp(stored, model_mlp, model_name)
        if config.mlp_activation not in (None, model_mlp.activation):
            raise ValueError(
                f"the pair's MLP activation is {config.mlp_activation!r}, but {model_name}'s is "
                f"{model_mlp.activation!r}: they do not belong together"
            )
        return MLP(activation=model_mlp.activation, **stored)
    if config.mlp_activation is None:
        raise ValueError(
            "the artifact names no MLP activation, and no language model was given to take it from; pass "
            f"language_model=load_language_model({config.model_name!r})"
        )
    return MLP(activation=config.mlp_activation, **stored)


def _check_same_mlp(stored: Mapping[str, Tensor], model_mlp: MLP, model_name: str) -> None:
    model_weights = dict(model_mlp.named_buffers(recurse=False))
    for name in (name for name in MLP_WEIGHTS if name in model_weights or name in stored):
        expected = model_weights.get(name)
        # a bias that the artifact leaves out counts as zeros
        actual = stored.get(name, None if expected is None else torch.zeros_like(expected))
        if (
            expected is None
            or actual is None
            or expected.shape != actual.shape
            # 1% of the largest weight: far above the rounding of bfloat16, far below the difference of another model
            or (actual - expected).abs().max() > 0.01 * expected.abs().max().clamp(min=1e-3)
        ):
            raise ValueError(
                f"mlp.{name} differs from {model_name}'s own: this pair and this language model do not belong "
                "together (another model, layer or revision, or weights that were folded or randomised)"
            )


def _json_object(written: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(written)
    except ValueError as error:
        raise ValueError(f"the configuration is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"the configuration is a JSON {type(values).__name__}, expected an object of settings")
    return values
