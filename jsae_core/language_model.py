"""A language model and what happens at one of its MLPs.

Here: loading, the twin with randomised weights, the MLP's input and output at a layer, the predictions if these are
replaced, the frozen MLP. Everything is read from Hugging Face's own model while it runs. What is built here (the frozen
MLP, a resumed pass, the logits of what leaves the last block) is compared with that model before it is returned.
Not here: where the files are (`model_files.py`), how an MLP is found (`decoder_blocks.py`), batching documents
(`activations.py`), text and tokens (`text.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jsae_core.decoder_blocks import BlockMLP, alone, decoder_blocks, find_mlps, hidden_state, hooked
from jsae_core.memory import fitting, moved, weights_bytes
from jsae_core.mlp import MLP
from jsae_core.model_files import find_model, read_model, read_tokenizer
from jsae_core.recipe import LARGEST_SEED
from jsae_core.tensor_files import content_digest, read_tensors
from jsae_core.transformer_lens_weights import weights_from_transformer_lens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = (2, 5)  # rows and positions of the tokens on which what is built here is compared with the model
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "seq_length")
DEFAULT_CONTEXT = 2048  # for a model whose config has none, as its positions are relative (BLOOM's training length)


class LanguageModel:
    """A causal language model with Hugging Face's weights as they are: nothing is folded or centred.

    Attributes:
        name: the hub name or directory it was loaded from.
        revision: the commit of a model from the hub; None for a directory.
        hugging_face, tokenizer: Hugging Face's own model and tokenizer.
        n_layers, d_model, context_size, n_vocabulary: sizes.

    Raises:
        ValueError: no blocks are found in the model, it does not run, or its logits are not finite, or depend on later
            tokens or on more than what leaves the last block.
    """

    def __init__(
        self,
        name: str,
        hugging_face: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        revision: str | None = None,
    ):
        self.name = name
        self.revision = revision
        self.hugging_face = hugging_face
        self.tokenizer = tokenizer
        config = hugging_face.config.get_text_config(decoder=True)
        self._blocks = decoder_blocks(hugging_face)
        self.n_layers = len(self._blocks)
        self.d_model: int = config.hidden_size
        self.context_size: int = next(
            (size for name in CONTEXT_NAMES if (size := getattr(config, name, None) or 0) > 0), DEFAULT_CONTEXT
        )
        self.n_vocabulary: int = hugging_face.get_input_embeddings().weight.shape[0]
        self._verified: set[int] = set()
        self._probe = self._probe_tokens()
        with self._running():
            self._mlps, self._block_form, logits = find_mlps(hugging_face, self._blocks, self._probe)
            if not logits.isfinite().all():
                raise ValueError(f"{self._who()}: gives logits that are NaN or infinite; are its weights damaged?")
            self._check_causal(logits)
            self._compare(
                "what its final norm and unembedding make of what leaves its last block",
                self.logits(hidden_state(self._block_form).flatten(0, 1)),
                logits.flatten(0, 1),
            )

    @property
    def device(self) -> torch.device:
        return next(self.hugging_face.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hugging_face.parameters()).dtype

    def digest(self) -> str:
        """A digest of the weights."""
        return content_digest(self.hugging_face.state_dict())

    @torch.no_grad()
    def mlp_activations(self, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The MLP's input and output at a layer; nothing after that MLP is run.

        Args:
            tokens: [..., position] token ids. Documents shorter than the rest are padded on the right: attention is
                causal, so padding changes nothing to its left.

        Returns:
            Two [..., position, d_model]: what enters the MLP (after its LayerNorm, gain and bias included) and what
            leaves its last linear map, before anything is added to it or normalised.

        Raises:
            ValueError: the model has no such layer, or none with a plain or gated MLP; a token id is outside its
                vocabulary or a document longer than its context; or what is read here does not agree with the model.
        """
        self._verify(layer)
        return self._activations(self._checked(tokens), layer, tokens.shape)

    @torch.no_grad()
    def mlp_input_conventions(self, tokens: Tensor, layer: int) -> dict[str, Tensor]:
        """The MLP's input at a layer under each convention, [..., position, d_model] each, by the convention's name.

        `true`: as `mlp_activations` gives it. If the model normalises it, also `folded`: normalised without gain and
        bias, which belongs to weights that these are folded into; and `unnormalised`: what enters the normalisation.

        Args:
            tokens: as for `mlp_activations`.

        Raises:
            ValueError: as `mlp_activations` does.
        """
        self._verify(layer)
        norm, kept = self._mlps[layer].norm, {}

        def keep(module, args, kwargs) -> None:
            kept["unnormalised"] = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

        with hooked([norm.module.register_forward_pre_hook(keep, with_kwargs=True)] if norm else []):
            true, _ = self._activations(self._checked(tokens), layer, tokens.shape)
        if norm is None:
            return {"true": true}
        before = kept["unnormalised"].reshape(true.shape)
        return {"true": true, "folded": norm.standardised(before), "unnormalised": before}

    @torch.no_grad()
    def clean_pass(self, tokens: Tensor, layer: int) -> CleanPass:
        """Run all blocks, and keep what is needed to resume at the MLP of a layer with other outputs of it.

        Args:
            tokens: [row, position], as for `mlp_activations`.

        Raises:
            ValueError: as `mlp_activations` does.
        """
        self._verify(layer)
        return self._clean_pass(self._checked(tokens), layer)

    @torch.no_grad()
    def logits(self, blocks_output: Tensor) -> Tensor:
        """The logits [n, vocabulary] of what leaves the last block [n, d_model]: after the final norm, the unembedding
        and whatever else the model does there."""
        tokens = torch.zeros(len(blocks_output), 1, dtype=torch.int64, device=self.device)
        with _giving(dict.fromkeys(self._blocks, alone(self._block_form, blocks_output[:, None]))):
            return self._run(tokens)[:, 0]

    def mlp(self, layer: int) -> MLP:
        """The frozen MLP of a layer, on the model's device and in its dtype. Raises ValueError as `mlp_activations`
        does."""
        self._verify(layer)
        return self._mlps[layer].frozen()

    @torch.no_grad()
    def folded_mlp(self, layer: int) -> MLP:
        """The MLP with folded weights, as TransformerLens makes it by default: the gain and bias of the normalisation
        before it are part of its weights. If that is a LayerNorm, the weights are centred as well: they read nothing
        from the mean of the input, and add nothing to the mean of the residual stream. For `folded` inputs
        (`mlp_input_conventions`) it gives the MLP's output, less its mean over features if the weights are centred.
        Without a normalisation, it is the MLP as it is. Raises ValueError as `mlp` does.
        """
        mlp, norm = self.mlp(layer), self._mlps[layer].norm
        if norm is None:
            return mlp
        inputs = self.mlp_input_conventions(self._probe, layer)
        gain, bias = norm.gain_and_bias(inputs["folded"].flatten(0, -2), inputs["true"].flatten(0, -2))
        return mlp.folded(gain, bias, norm.centred)

    # --- running Hugging Face's model ---

    def _run(self, tokens: Tensor) -> Tensor:
        return self.hugging_face(tokens, use_cache=False).logits

    def _activations(self, rows: Tensor, layer: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        mlp, kept = self._mlps[layer], {}

        def stop(module, args, output) -> None:
            kept["output"] = output
            raise _Stop

        hooks = (mlp.into[0].register_forward_pre_hook(_keep_input(kept)), mlp.down.register_forward_hook(stop))
        with hooked(hooks), contextlib.suppress(_Stop):
            self._run(rows)
        return kept["input"].reshape(*shape, -1), kept["output"].reshape(*shape, -1)

    def _clean_pass(self, rows: Tensor, layer: int) -> CleanPass:
        mlp, kept, ahead = self._mlps[layer], {}, {}

        def keep_output(module, args, output) -> None:
            kept["output"] = output.clone()  # Falcon adds in place to what its MLP gave

        def keep_ahead(module, args, output) -> None:
            ahead[module] = alone(output)

        # the blocks before this layer are not run again, and only the output of the last of them is needed
        parts = [*mlp.before, *self._blocks[max(0, layer - 1) : layer]]
        hooks = [
            mlp.into[0].register_forward_pre_hook(_keep_input(kept)),
            mlp.down.register_forward_hook(keep_output),
            *(part.register_forward_hook(keep_ahead) for part in parts),
        ]
        with hooked(hooks):
            leaving = self._blocks_output(rows)
        if layer:
            ahead |= dict.fromkeys(self._blocks[:layer], ahead[self._blocks[layer - 1]])
        mlp_input, mlp_output = (kept[name].reshape(*rows.shape, -1) for name in ("input", "output"))
        return CleanPass(mlp_input, mlp_output, leaving, rows, layer, kept["output"].shape, ahead, self)

    def _blocks_output(self, rows: Tensor) -> Tensor:
        """What leaves the last block, [row, position, d_model]; the unembedding is not run."""
        last: list[Tensor] = []

        def stop(module, args, output) -> None:
            last.append(hidden_state(output))
            raise _Stop

        with hooked([self._blocks[-1].register_forward_hook(stop)]), contextlib.suppress(_Stop):
            self._run(rows)
        return last[0]

    # --- what is refused ---

    def _checked(self, tokens: Tensor) -> Tensor:
        """The tokens as [rows, position] on the model's device. Raises ValueError if the model cannot take them."""
        if not tokens.ndim or not tokens.numel() or tokens.is_floating_point():
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; expected token ids, whole numbers, "
                "at least one of them: [..., position]"
            )
        if tokens.min() < 0 or tokens.max() >= self.n_vocabulary:
            raise ValueError(
                f"token ids run from {int(tokens.min())} to {int(tokens.max())}, but {self.name} has a vocabulary of "
                f"{self.n_vocabulary}; were they made with another model's tokenizer?"
            )
        if tokens.shape[-1] > self.context_size:
            raise ValueError(
                f"{tokens.shape[-1]} tokens in a row were given, but {self.name} has a context of {self.context_size}; "
                "cut the documents (the context_size of tokenise, or of the model in the catalog)"
            )
        return moved(tokens.reshape(-1, tokens.shape[-1]), self.device)

    def check_layer(self, layer: int) -> None:
        """Raise ValueError if the model has no such layer."""
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"{self.name} has layers 0 to {self.n_layers - 1}; there is no layer {layer}")

    def _verify(self, layer: int) -> None:
        """At the first use of a layer, compare what is read from it and built for it with the model's own forward."""
        if layer in self._verified:
            return
        self.check_layer(layer)
        mlp = self._mlps[layer]
        if not isinstance(mlp, BlockMLP):
            raise ValueError(f"{self._who()}, layer {layer} {mlp}; only plain and gated MLPs have a Jacobian here")
        with self._running():
            self._compare_layer(layer, mlp)
        self._verified.add(layer)

    def _compare_layer(self, layer: int, mlp: BlockMLP) -> None:
        x, y = mlp.example
        read = self._activations(self._probe, layer, self._probe.shape)
        self._compare("the input of its MLP that is read here", read[0].flatten(0, 1), x, layer)
        self._compare("the output of its MLP that is read here", read[1].flatten(0, 1), y, layer)
        self._compare(f"the MLP (activation {mlp.activation}) that is made of its weights", mlp.frozen()(x), y, layer)
        other = y.roll(1, dims=0).flip(-1)

        def replace(module, args, output: Tensor) -> Tensor:
            return other.view_as(output).clone()

        with hooked([mlp.down.register_forward_hook(replace)]):
            expected = self._blocks_output(self._probe)
        resumed = self._clean_pass(self._probe, layer).resumed(other.view(*self._probe.shape, -1))
        self._compare("what leaves its last block if another output of the MLP is put in", resumed, expected, layer)

    @torch.no_grad()
    def _check_causal(self, logits: Tensor) -> None:
        """Raise ValueError if later tokens change anything, since documents are padded on the right without a mask."""
        other_end = self._probe.clone()
        other_end[:, -1] = (other_end[:, -1] + 1) % self.n_vocabulary
        changed = self._run(other_end)
        if self._off(changed[:, :-1], logits[:, :-1]) > self._tolerance():
            raise ValueError(
                f"{self._who()}: what it says at a token changes with tokens that come later, or from one run to the "
                "next; expected a causal language model (is its attention made bidirectional in config.json?)"
            )

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Turn whatever Hugging Face's modules raise into a ValueError that names the model."""
        try:
            yield
        except (ValueError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(
                f"{self._who()}: does not run on a few tokens, or not with some of its parts replaced "
                f"({type(error).__name__}: {error}). Do the sizes in its config.json fit together? If they do, this "
                "architecture cannot be measured here"
            ) from error

    def _off(self, ours: Tensor, theirs: Tensor) -> float:
        """The norm of their difference, relative to that of `theirs`."""
        wide = torch.promote_types(self.dtype, torch.float32)
        ours, theirs = ours.to(wide), theirs.to(wide)
        return float((ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(theirs.dtype).tiny))

    def _compare(self, what: str, ours: Tensor, theirs: Tensor, layer: int | None = None) -> None:
        off = self._off(ours, theirs)
        if not off <= self._tolerance():
            at = "" if layer is None else f", layer {layer}"
            raise ValueError(
                f"{self._who()}{at}: {what} differs from what Hugging Face's own model gives, by {off:.2g} of its "
                "norm; this architecture cannot be measured here"
            )

    def _tolerance(self) -> float:
        """The relative difference allowed. Computing in other shapes changes a few units in the last place."""
        return min(0.05, 1000 * torch.finfo(self.dtype).eps)

    def _who(self) -> str:
        return f"{self.name} ({type(self.hugging_face).__name__})"

    def _probe_tokens(self) -> Tensor:
        rows, positions = PROBE[0], min(PROBE[1], self.context_size)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.n_vocabulary, (rows, positions), generator=generator).to(self.device)


@dataclass(frozen=True)
class CleanPass:
    """One run of a language model over some tokens, nothing replaced.

    Attributes, each [row, position, d_model]:
        mlp_input, mlp_output: what enters and what leaves the MLP of a layer.
        blocks_output: what leaves the last block.
    """

    mlp_input: Tensor
    mlp_output: Tensor
    blocks_output: Tensor
    _tokens: Tensor
    _layer: int
    _output_shape: torch.Size  # of the model's own MLP: OPT joins rows and positions in one dimension
    _ahead: Mapping[nn.Module, object]  # the outputs of the parts before the MLP
    _language_model: LanguageModel

    @torch.no_grad()
    def resumed(self, mlp_output: Tensor) -> Tensor:
        """What leaves the last block, [row, position, d_model], if `mlp_output` (same shape) leaves that MLP. Nothing
        before the MLP is computed again: the model runs, but its earlier parts return their outputs of the first
        run."""
        mlp = self._language_model._mlps[self._layer]
        given = dict(self._ahead)
        # any output of the first maps will do, since that of the last one is given
        given |= {part: mlp_output.new_zeros(1, 1, width) for part, width in zip(mlp.into, mlp.widths, strict=True)}
        given[mlp.down] = mlp_output.reshape(self._output_shape).clone()  # Falcon adds in place to it
        with _giving(given):
            return self._language_model._blocks_output(self._tokens)


class _Stop(Exception):
    """Ends a pass as soon as what was asked for is known."""


def _keep_input(kept: dict[str, Tensor]) -> Callable:
    def hook(module, args) -> None:
        kept["input"] = args[0]

    return hook


@contextlib.contextmanager
def _giving(outputs: Mapping[nn.Module, object]) -> Iterator[None]:
    """Have modules return fixed outputs without computing anything."""
    for module, output in outputs.items():
        module.forward = lambda *args, output=output, **kwargs: output
    try:
        yield
    finally:
        for module in outputs:
            del module.forward


def load_language_model(
    name_or_directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    randomise_seed: int | None = None,
    randomised_weights: str | Path | None = None,
    revision: str | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Load a model from the Hugging Face hub or a local directory in its format, tokenizer included.

    Args:
        name_or_directory: a `Path` is a directory, and so is text that starts with `.`, `/` or `~` or names a folder
            that holds a config.json; other text is a name on the hub.
        randomise_seed: redraw every weight matrix and embedding from N(0, 0.8 / sqrt(d_model)), which is the standard
            deviation, with this seed; biases and normalisation stay as they were trained (Farnik et al., 2025: the
            control that shows what training the language model has to do with sparse Jacobians). The same seed gives
            the same weights on every device.
        randomised_weights: a safetensors file with weights that were randomised before, in TransformerLens's names, as
            artifacts bring them; instead of a seed.
        revision: a branch, tag or commit of a hub model. With one, text is a name on the hub even if there is such a
            folder.
        say: receives a message on what is fetched from the hub, and how large it is, before that begins.

    Raises:
        FileNotFoundError: the directory does not hold a model, or the file of randomised weights is missing.
        ValueError: the model cannot be reached or read; its weights or its tokenizer are not complete; the dtype or the
            seed is invalid; the randomised weights are not this model's; or what is read here differs from what the
            model computes.
        MemoryError: the device has no room for it.
        RuntimeError, AssertionError: torch's own, if this machine lacks the device.
    """
    torch_dtype = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or the like")
    if randomise_seed is not None and not 0 <= randomise_seed <= LARGEST_SEED:
        raise ValueError(f"randomise_seed is {randomise_seed}, expected a whole number from 0 to 2**63 - 1")
    if randomise_seed is not None and randomised_weights is not None:
        raise ValueError(f"a randomise_seed ({randomise_seed}) and randomised_weights were given; expected at most one")
    torch.empty(0, device=device)  # a missing device is refused before anything is read
    files = find_model(name_or_directory, revision, say)
    weights = None if randomised_weights is None else _read_weights(randomised_weights)
    model = read_model(files, torch_dtype)
    tokenizer = read_tokenizer(files, model.get_input_embeddings().weight.shape[0])
    if randomise_seed is not None:
        _randomise(model, randomise_seed)
    if weights is not None:
        try:
            weights_from_transformer_lens(weights, model)
        except ValueError as error:
            raise ValueError(f"{randomised_weights}: {error}") from error
    randomised = randomise_seed is not None or randomised_weights is not None
    name = f"{files.name} (weights randomised)" if randomised else files.name
    with fitting(f"the language model {files.name}", device, weights_bytes(model)):
        return LanguageModel(name, model.to(device), tokenizer, files.revision)


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.8 / math.sqrt(model.config.get_text_config(decoder=True).hidden_size)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # biases and normalisation have one dimension
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; expected the weights of a randomised language model")
    return read_tensors(path)[0]
