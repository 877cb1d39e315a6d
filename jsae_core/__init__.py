"""The science of Jacobian sparse autoencoders, in plain PyTorch. Knows no Dagster; use it alone from a notebook.

Names are loaded when first used, so that `import jsae_core` does not import torch (about ten seconds on two cores).
"""

from jsae_core.lazy import lazy_names

_HOMES = {
    "SAEPair": "sae_pair",
    "PairConfig": "pair_format",
    "run_sandwich": "jacobian",
    "Sandwich": "jacobian",
    "load_language_model": "language_model",
    "LanguageModel": "language_model",
    "MLPInputs": "activations",
    "train_pair": "training",
    "TrainingConfig": "recipe",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
