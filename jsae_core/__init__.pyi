# The public names and the modules that define them, for `lazy_loader`, which loads a name at first use, and for mypy.

from . import figures as figures
from . import measures as measures
from .activations import MLPInputs as MLPInputs
from .jacobian import Sandwich as Sandwich
from .jacobian import run_sandwich as run_sandwich
from .language_model import LanguageModel as LanguageModel
from .language_model import load_language_model as load_language_model
from .pair_format import PairConfig as PairConfig
from .recipe import TrainingConfig as TrainingConfig
from .sae_pair import SAEPair as SAEPair
from .training import train_pair as train_pair

__version__: str
