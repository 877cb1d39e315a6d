"""What a measure or a check of a pair is given: the pair, its language model, and what it is measured on.

Not here: which cell of the catalog that is (`cell.py`), the measures (`measures.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsae_assets.assets.cell import Cell, context_size
from jsae_assets.catalog import C4_IN_WORDS
from jsae_assets.files.stored import StoredTensors
from jsae_assets.resources import Compute

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair
    from jsae_core.checkpoints import Checkpoint


@dataclass(frozen=True)
class Subject:
    """What a measure is given: a pair, its cell, and what it is measured on.

    Attributes:
        tokens: the stored tokens of the model; None for a measure that reads none.
        checkpoint: where measuring resumes; removed once the result is stored. None if nothing takes long.
    """

    cell: Cell
    compute: Compute
    pair: "SAEPair"
    tokens: StoredTensors | None = None
    checkpoint: "Checkpoint | None" = None

    @property
    def language_model(self) -> "LanguageModel":
        return self.cell.language_model(self.compute, self.pair)

    @property
    def documents(self) -> "list[Tensor]":
        """The model's tokens, a 1-d tensor for each document, BOS first."""
        from jsae_core.text import split_documents

        return split_documents(self.tokens)

    @property
    def sources(self) -> list[int]:
        """The number of the whole document that each of these documents is from."""
        from jsae_core.text import split_sources

        return split_sources(self.tokens)

    @property
    def mlp_inputs(self) -> "MLPInputs":
        """The MLP's inputs over all of these documents. All measures of a run share what the model computes for
        them."""
        key = self.tokens.version
        return self.compute.mlp_inputs(self.language_model, self.cell.layer, key, lambda: self.documents, self.sources)

    @property
    def prompt(self) -> "Tensor":
        """The tokens of the model's prompt, BOS first."""
        from jsae_core.text import tokenise

        language_model, model = self.language_model, self.cell.model
        size = context_size(model, language_model)
        (document,) = tokenise([model.prompt], language_model.tokenizer, size, long_documents="truncate")
        return document

    @property
    def as_published(self) -> bool:
        """Whether a reported number of this pair was measured on folded weights. Then the pair is measured on these,
        too."""
        reported = self.cell.reported(self.cell.pair.variant, self.pair.config.jacobian_coefficient)
        return any(result.weights == "folded" for result in reported.values())

    @property
    def labels(self) -> dict[str, Any]:
        """The labels of a result in its file and in figures: the pair that it was measured on, the text, and the kind
        of the language model's weights."""
        config = self.pair.config
        return {
            "model": self.cell.model_key,
            "layer": self.cell.layer,
            "variant": self.cell.pair.variant,
            "d_sae": config.d_sae,
            "k": config.k,
            "jacobian_coefficient": config.jacobian_coefficient,
            "text": self.cell.model.text or C4_IN_WORDS,
            "weights": "randomised" if config.randomize_llm_weights else "unprocessed",
        }
