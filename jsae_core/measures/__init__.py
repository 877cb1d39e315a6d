"""What is measured on a pair: each a function of (pair, stream), a stream being an iterable of MLP inputs
[n_tokens, d_model] with BOS and padding already left out (`activations.MLPInputs` is one).

Names are loaded when first used, as in `jsae_core`.
"""

from jsae_core.lazy import lazy_names

_HOMES = {
    "jacobian_histogram": "histogram",
    "jacobian_histograms": "histogram",
    "share_above": "histogram",
    "reconstruction_quality": "reconstruction",
    "ablation_samples": "ablation",
    "ablation_summary": "ablation",
    "function_curves": "linearity",
    "classify_curves": "linearity",
    "function_shapes": "linearity",
    "pair_quality": "quality",
    "latent_accounting": "accounting",
    "latent_accountings": "accounting",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
