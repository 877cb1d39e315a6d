"""What is measured on a pair: each a function of (pair, stream), a stream being an iterable of MLP inputs
[n_tokens, d_model] with BOS and padding already left out (`activations.MLPInputs` is one).

The public names stand in `__init__.pyi`, and each is loaded when first used, as in `jsae_core`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
