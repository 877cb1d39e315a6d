"""What a measure or a check of a pair is given: the pair, its language model, and what it is measured on.

Not here: which cell of the catalog that is (`cell.py`), the measures (`measures.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsae_assets.assets.cell import Cell, context_size
from jsae_assets.catalog import C4_IN_WORDS
from jsae_assets.resources import Compute
from jsae_assets.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair
    from jsae_core.checkpoints import Checkpoint


@dataclass(frozen=True)
class Subject:
    """What a measure is given: a pair, where it belongs, and what it is measured on.

    Attributes:
        tokens: the stored tokens of the model; None for a measure that reads none.
        checkpoint: what measuring goes on from; removed once the result is stored. None where nothing is measured for
            long.
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
        """The model's tokens, a 1-d tensor a document, BOS first."""
        from jsae_core.text import split_documents

        return split_documents(self.tokens)

    @property
    def mlp_inputs(self) -> "MLPInputs":
        """The MLP's inputs over all of these documents; what reads them in a run shares what the model computes."""
        key = self.tokens.version
        return self.compute.mlp_inputs(self.language_model, self.cell.layer, key, lambda: self.documents)

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
        """Whether something was reported of the pair that was taken on folded weights: then that is measured likewise,
        beside what is measured of every pair."""
        reported = self.cell.reported(self.cell.pair.variant, self.pair.config.jacobian_coefficient)
        return any(result.weights == "folded" for result in reported.values())

    @property
    def labels(self) -> dict[str, Any]:
        """What is said of a result wherever it goes, in its file and in figures: which pair it was measured on, on
        which text, and with which weights of the language model."""
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
