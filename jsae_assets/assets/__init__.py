"""The assets, one file for each family. Factories make them from the catalog; their bodies mostly call jsae_core.

    text.py, sae_pairs.py, sweeps.py      tokens, pairs, local sweeps and the runs of wandb projects
    training.py                           training a pair, for `sae_pairs.py` and `sweeps.py`
    measures.py, measure_assets.py        the declarations of the measures, and the factory of their assets
    figures.py, figure_assets.py          the same of the figures
    site.py                               the site
    cell.py, subject.py, spread.py        what bodies share: the cell, the pair and its tokens, the steps of shards
    summary.py, markdown.py               descriptions and metadata for the UI
    memory_settings.py                    errors about memory, with the settings that help

Not here: how results are stored (`io_managers.py`, `files/`), the pages of the site (`site/`).
"""
