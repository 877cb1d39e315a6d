"""The pair: two SAEs with a frozen MLP between them.

Here: `SAEPair`, where it is and what it is made of. Not here: the artifact format (`pair_format.py`), one SAE
(`sae.py`), the tables of the Jacobian (`tables.py`), the Jacobian (`jacobian.py`), training (`training.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sae_lens import TopKSAE
from torch import Tensor, nn

from jsae_core.memory import fitting, weights_bytes
from jsae_core.mlp import MLP
from jsae_core.pair_format import (
    MLP_WEIGHTS,
    PairConfig,
    check_tensors,
    mlp_of,
    read_artifact,
    sae_weights,
    tensor_name,
    write_artifact,
)
from jsae_core.sae import SAE_WEIGHTS, make_sae
from jsae_core.tables import TableCache, Tables

if TYPE_CHECKING:
    from jsae_core.language_model import LanguageModel


class SAEPair(nn.Module):
    """Two TopK SAEs around a frozen MLP.

    Attributes:
        config: PairConfig.
        input_sae, output_sae: SAELens TopKSAE; W_enc [d_in, d_sae], W_dec [d_sae, d_in].
        mlp: the frozen MLP between them.
        table_dtype: dtype of the table rows from which Jacobians are computed. None: the pair's own dtype. Rows in
            torch.bfloat16 for a float32 pair take half the memory, and a GPU multiplies them faster; sums stay float32.
            The error of the Jacobians is then 0.2% (root mean square, relative to that of J, against float64: the
            result of `python -m benchmarks.precision` on the CPU). Only Jacobians use these rows: interventions, curves
            and the levels of accounting use rows in the pair's own dtype, which are then kept as well.
    """

    def __init__(
        self,
        config: PairConfig,
        input_sae: TopKSAE,
        output_sae: TopKSAE,
        mlp: MLP,
        table_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if table_dtype not in (None, torch.bfloat16):
            raise ValueError(f"table_dtype is {table_dtype}; expected torch.bfloat16, or None for the pair's own dtype")
        self.config = config
        self.input_sae = input_sae
        self.output_sae = output_sae
        self.mlp = mlp
        self.requires_grad_(False)
        self.table_dtype = table_dtype
        self._tables = TableCache()
        self._rounded_tables = TableCache(table_dtype)

    @property
    def device(self) -> torch.device:
        return self.input_sae.W_enc.device

    def tables(self) -> Tables:
        """The Jacobian's two tables in the pair's own dtype, built at first use and again when a weight was replaced,
        moved or changed.

        Raises:
            MemoryError: the device has no room for the tables.
        """
        return self._tables.tables(*self._table_weights())

    def table_rows(self, input_latents: Tensor, output_latents: Tensor) -> tuple[Tables, Tensor, Tensor]:
        """Tables of `table_dtype` that hold at least the rows of these latents: all rows, or, for a few latents, theirs
        alone. Also returns the index of each latent's row, in the shape of `input_latents` and of `output_latents`.
        Raises MemoryError as `tables` does."""
        own = self.table_dtype in (None, self.input_sae.W_dec.dtype)
        cache = self._tables if own else self._rounded_tables
        return cache.rows(*self._table_weights(), input_latents, output_latents)

    @property
    def tables_bytes(self) -> int:
        """The memory in bytes of the tables that are built."""
        return self._tables.n_bytes + self._rounded_tables.n_bytes

    def _table_weights(self) -> tuple[Tensor, Tensor, MLP]:
        return self.input_sae.W_dec, self.output_sae.W_enc, self.mlp

    def _apply(self, fn, recurse: bool = True) -> SAEPair:
        """Called by `to`, `double` and similar methods. SAELens stores dtype and device separately from an SAE's
        weights, and only the SAE's own `to` updates them."""
        super()._apply(fn, recurse)
        for sae in (self.input_sae, self.output_sae):
            sae.to(sae.W_enc.device, sae.W_enc.dtype)
        self.config = replace(self.config, dtype=self.input_sae.cfg.dtype)
        return self

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        language_model: LanguageModel | None = None,
        table_dtype: torch.dtype | None = None,
    ) -> SAEPair:
        """Read a pair from an artifact's directory, or from the single file of a stored pair.

        Args:
            language_model: source of the MLP's activation, and of the MLP if the artifact lacks it. Without a language
                model, both must be in the artifact, as `save` writes them.
            table_dtype: see the attribute.

        Raises:
            FileNotFoundError: the directory or one of its files is missing.
            ValueError: a file is truncated, a stored pair's file is not what its digest says, a tensor is missing, has
                the wrong shape or is not finite, or the configuration is invalid. The message names the file.
            MemoryError: the device has no room for the pair.
        """
        tensors, config, weights_path = read_artifact(path)
        try:
            pair = cls.from_tensors(tensors, config, language_model, table_dtype)
        except ValueError as error:
            raise ValueError(f"{weights_path}: {error}") from error
        with fitting(f"the pair {path}", device, weights_bytes(pair)):
            return pair.to(device)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        config: PairConfig,
        language_model: LanguageModel | None = None,
        table_dtype: torch.dtype | None = None,
    ) -> SAEPair:
        """Make a pair from tensors under their artifact names. Raises ValueError as `load` does."""
        check_tensors(tensors, config)
        tensors = {name: tensor.to(config.torch_dtype) for name, tensor in tensors.items()}
        if language_model is None:
            mlp = mlp_of(tensors, config)
        else:
            model_mlp = language_model.mlp(config.layer).to("cpu", config.torch_dtype)
            mlp = mlp_of(tensors, config, model_mlp, language_model.name)
        input_sae, output_sae = (
            make_sae(
                sae_weights(tensors, side),
                config.k,
                config.apply_b_dec_to_input,
                config.model_name,
                f"blocks.{config.layer}.mlp.{hook}",
                config.prepend_bos,
            )
            for side, hook in (("input", "hook_in"), ("output", "hook_out"))
        )
        return cls(replace(config, mlp_activation=mlp.activation), input_sae, output_sae, mlp, table_dtype)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the artifact by their artifact names, on the CPU."""
        named = {
            tensor_name(side, name): getattr(sae, name)
            for side, sae in (("input", self.input_sae), ("output", self.output_sae))
            for name in SAE_WEIGHTS
        } | {f"mlp.{name}": getattr(self.mlp, name) for name in MLP_WEIGHTS if hasattr(self.mlp, name)}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def save(self, directory: str | Path) -> None:
        """Write the artifact directory. Both files are first written under temporary names, then moved into place."""
        write_artifact(self.tensors(), self.config, directory)
