# The public names and the modules that define them (see jsae_core/__init__.pyi).

from .ablation import ablation_figure as ablation_figure
from .dead_latents import dead_latents_figure as dead_latents_figure
from .differences import Difference as Difference
from .differences import differences_figure as differences_figure
from .edge_curve import edge_curve_figure as edge_curve_figure
from .equal_quality import PairNumbers as PairNumbers
from .equal_quality import equal_quality_figure as equal_quality_figure
from .examples import jacobian_examples_figure as jacobian_examples_figure
from .examples import permute_rows_and_columns as permute_rows_and_columns
from .function_curves import function_curves_figure as function_curves_figure
from .function_shapes import function_shapes_figure as function_shapes_figure
from .histogram import jacobian_histogram_figure as jacobian_histogram_figure
from .quality import quality_by_layer_figure as quality_by_layer_figure
from .sparsity import jacobian_sparsity_figure as jacobian_sparsity_figure
from .style import Variant as Variant
from .sweep import sweep_grid_figure as sweep_grid_figure
from .sweep import sweep_tradeoff_figure as sweep_tradeoff_figure
from .sweep_runs import odd_runs as odd_runs
from .thresholds import jacobian_thresholds_figure as jacobian_thresholds_figure
