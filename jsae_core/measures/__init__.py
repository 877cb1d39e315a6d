"""What is measured on a pair: each a function of (pair, stream), a stream being an iterable of MLP inputs
[n_tokens, d_model] with BOS and padding already left out (`activations.MLPInputs` is one).

Names are loaded when first used, as in `jsae_core`.
"""

from importlib import import_module

_HOMES = {
    "jacobian_histogram": "histogram",
    "jacobian_histograms": "histogram",
    "share_above": "histogram",
    "reconstruction_quality": "reconstruction",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jsae_core.measures' has no attribute {name!r}")
    return getattr(import_module(f"jsae_core.measures.{_HOMES[name]}"), name)
