"""The science of Jacobian sparse autoencoders, in plain PyTorch, without Dagster; can be used alone from a notebook.

The public names are listed in `__init__.pyi`. Each is loaded when it is first used, so that `import jsae_core` does not
import torch (about ten seconds on two cores).
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("jsae")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
