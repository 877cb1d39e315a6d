"""The asset `site`: a static site that shows everything stored.

Here: the asset. Not here: the pages (`jsae_assets.site`), storing them (`io_managers.py`).
"""

import contextlib
import functools
import gc
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg

from jsae_assets import groups
from jsae_assets.assets.cell import OWNERS, Stopwatch
from jsae_assets.assets.figures import CELL_FIGURES, CONTROL_FIGURES, LAYER_FIGURES
from jsae_assets.assets.measures import MEASURES
from jsae_assets.assets.sweeps import ASSET as SWEEP_RUNS
from jsae_assets.catalog import Catalog
from jsae_assets.entries import CATALOG, confirm
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.refusals import refusal
from jsae_assets.runs.plan import GATHERS

ASSET = "site"


def site_asset(catalog: Catalog, shown: Sequence[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    """Return the asset that makes a catalog's site. It shows the assets `shown`, as far as they are stored."""

    @dg.asset(
        name=ASSET,
        deps=[dg.AssetDep(CATALOG), *(dg.AssetDep(asset.key) for asset in shown)],
        description="The results as pages that open in a browser without a server: numbers, figures, and an explorer "
        "of latents. They show what is stored when the site is made, and name what is missing.",
        group_name=groups.SITE,
        kinds={"html"},
        owners=OWNERS,
        code_version="11",
        tags=GATHERS,
        io_manager_key="pages",
    )
    def site(
        context: dg.AssetExecutionContext,
        tensors: dg.ResourceParam[StoringIOManager],
        tables: dg.ResourceParam[StoringIOManager],
        figures: dg.ResourceParam[StoringIOManager],
    ) -> Iterator[dg.Output]:
        from jsae_assets.site.pages import FigureNames, Site
        from jsae_assets.site.results import Stores

        confirm(context, catalog)
        watch = Stopwatch()
        names = FigureNames(
            [figure.name for figure in (*CELL_FIGURES, *CONTROL_FIGURES)],
            [figure.name for figure in LAYER_FIGURES],
            [asset.key.path[-1] for asset in shown if asset.key.path[:-1] == ["figures", SWEEP_RUNS]],
        )
        with tempfile.TemporaryDirectory() as folder:
            site_pages = Site(
                catalog,
                {
                    (asset.key.to_user_string(), key)
                    for asset in shown
                    for key in asset.partitions_def.get_partition_keys()
                },
                Stores(
                    tensors, tables, figures, [measure.name for measure in MEASURES if measure.stored_as == "tables"]
                ),
                names,
                Path(folder),
                functools.partial(_token_texts, catalog),
                {measure.name: measure.description for measure in MEASURES},
                functools.partial(refusal, context.instance),
                context.log.info,
            )
            with _older_objects_left_alone():
                site_pages.write()
            yield dg.Output(
                Path(folder),
                metadata={
                    "pages": sum(1 for _ in Path(folder).rglob("*.html")),
                    "missing": ", ".join(site_pages.missing) or "nothing",
                    "source": "all that was stored",
                    "seconds": watch.seconds,
                },
            )

    return site


@contextlib.contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Context manager in which the garbage collector looks only at objects that are made in it. It would otherwise go
    through all modules and definitions again each time that lists for the site have piled up: a third of the time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _token_texts(catalog: Catalog, model_key: str, token_ids: Sequence[int]) -> list[str]:
    """Return the text of each token. Only the tokenizer of the language model is read."""
    from jsae_core.model_files import find_model, read_tokenizer

    tokenizer = read_tokenizer(find_model(*catalog.models[model_key].source), max(token_ids) + 1)
    return [str(tokenizer.decode([token])) for token in token_ids]
