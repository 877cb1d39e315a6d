"""The science of Jacobian sparse autoencoders, in plain PyTorch. Knows no Dagster; use it alone from a notebook.

Names are loaded when first used, so that `import jsae_core` does not import torch (about ten seconds on two cores).
"""

from importlib import import_module

_HOMES = {
    "SAEPair": "sae_pair",
    "PairConfig": "sae_pair",
    "run_sandwich": "jacobian",
    "Sandwich": "jacobian",
    "load_language_model": "language_model",
    "LanguageModel": "language_model",
    "MLPInputs": "activations",
    "train_pair": "training",
    "TrainingConfig": "recipe",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jsae_core' has no attribute {name!r}")
    return getattr(import_module(f"jsae_core.{_HOMES[name]}"), name)
