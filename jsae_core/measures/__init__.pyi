# The public names, each with its home (see jsae_core/__init__.pyi).

from .ablation import ablation_estimates as ablation_estimates
from .ablation import ablation_samples as ablation_samples
from .ablation import ablation_summary as ablation_summary
from .accounting import latent_accounting as latent_accounting
from .accounting import latent_accountings as latent_accountings
from .activity import latent_activity as latent_activity
from .connections import connection_curves as connection_curves
from .connections import latent_connections as latent_connections
from .connections import strongest_connections as strongest_connections
from .contexts import latent_contexts as latent_contexts
from .contexts import stream_contexts as stream_contexts
from .conventions import InputConventions as InputConventions
from .conventions import input_conventions as input_conventions
from .histogram import jacobian_histogram as jacobian_histogram
from .histogram import jacobian_histograms as jacobian_histograms
from .histogram import jacobian_measures as jacobian_measures
from .histogram import jacobian_sizes as jacobian_sizes
from .histogram import share_above as share_above
from .linearity import classify_curves as classify_curves
from .linearity import function_curves as function_curves
from .linearity import function_shapes as function_shapes
from .moments import Estimate as Estimate
from .moments import difference as difference
from .quality import measured_quality as measured_quality
from .quality import pair_quality as pair_quality
from .reconstruction import reconstruction_quality as reconstruction_quality
