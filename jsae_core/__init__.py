"""The science of Jacobian sparse autoencoders, in plain PyTorch. Knows no Dagster; use it alone from a notebook.

The public names stand in `__init__.pyi`, and each is loaded when first used, so that `import jsae_core` does not import
torch (about ten seconds on two cores).
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("jsae")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
