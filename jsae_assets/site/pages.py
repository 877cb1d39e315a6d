"""The pages: what was stored becomes a folder that a browser opens.

Here: which pages there are, what each shows, figures as files that a page loads. Not here: how they look (`templates/`,
`static/`), the sentences about a pair (`sentences.py`), the numbers of a figure (`figure_numbers.py`), the explorer's
data (`explorer.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from jsae_assets.catalog import Catalog
from jsae_assets.files.stored import PROVENANCE, WHOLE_DOCUMENTS, StoredFigure
from jsae_assets.number import on_errors, with_minus
from jsae_assets.partitions import cell_key
from jsae_assets.site.explorer import write_cell, write_script, write_texts
from jsae_assets.site.figure_numbers import numbers_of, plain
from jsae_assets.site.results import (
    COLUMNS,
    OF_PAIR,
    Stores,
    agreement,
    compared_with,
    numbers,
    settings_of,
    sweep_table,
    variants_at,
)
from jsae_assets.site.sentences import sentences
from jsae_core.terms import FEW_DOCUMENTS

if TYPE_CHECKING:
    import pandas as pd

STATIC = Path(__file__).parent / "static"
MOST_ROWS = 60  # of a figure's numbers that its page shows; the file has all


@dataclass(frozen=True)
class FigureNames:
    """Which figures there are, in the order in which pages show them."""

    of_cells: Sequence[str]
    of_models: Sequence[str]
    of_sweeps: Sequence[str]


@dataclass
class Site:
    """A site that is being written.

    Attributes:
        places: the assets and partitions that can exist in this catalog.
        folder: the folder to write to.
        token_texts: the texts of tokens, given a model's key and token ids.
        definitions: what each measure is, in words, by its name.
        refusal: why a pair was refused, given variant, model and layer; None where it was not.
        say: writes a line to the log.
    """

    catalog: Catalog
    places: Container[tuple[str, str]]
    stores: Stores
    figures: FigureNames
    folder: Path
    token_texts: Callable[[str, Sequence[int]], list[str]]
    definitions: Mapping[str, str]
    refusal: Callable[[str, str, int], str | None]
    say: Callable[[str], None]
    missing: list[str] = field(default_factory=list)
    _known_texts: dict[str, tuple[np.ndarray, list[int]]] = field(default_factory=dict, init=False)
    _chosen: dict[str, Any] | None = field(default=None, init=False)  # the row that the start page is about

    def write(self) -> None:
        """Write all pages and their data. What is not stored yet is left out and named in `missing`."""
        self._pages = Environment(
            loader=PackageLoader("jsae_assets.site"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._pages.filters["counted"] = _counted
        self._copy_static()
        cells = [(model, layer) for model in self.catalog.models for layer in self.catalog.layers(model)]
        rows = [row for cell in cells for row in self._rows(*cell)]
        for row in rows:
            row["explorable"] = self._explorable(row)
        explored = [row for row in rows if row["explorable"]]
        for row in explored:
            self._write_explorer(row, {other["variant"] for other in explored if other["cell"] == row["cell"]})
        self._chosen = self._telling_cell(rows)
        shown = [cell for cell in cells if any(row["cell"] == cell for row in rows)]
        for cell in shown:
            self._cell_page(cell, [row for row in rows if row["cell"] == cell], shown)
        models = [model for model in self.catalog.models if any(row["model"] == model for row in rows)]
        for model in models:
            self._model_page(model, [row for row in rows if row["model"] == model])
        sweeps = [key for key in self.catalog.sweeps if self._sweep_page(key, rows)]
        write_script(self.folder, "cells", [self._of_explorer(row) for row in explored])
        self._page("explorer.html", "explorer.html", rows, title="Explorer")
        self._start_page(rows, shown, models, sweeps)

    # --- pages ---

    def _page(self, path: str, template: str, rows: list[dict], **values: Any) -> None:
        """Write a page about these pairs."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        opens, root = self._opened_first(rows), "../" * path.count("/")
        few = few_documents(rows)
        text = self._pages.get_template(template).render(root=root, rows=rows, opens=opens, few_documents=few, **values)
        target.write_text(text, encoding="utf-8")

    def _start_page(self, rows: list[dict], shown: list, models: list[str], sweeps: list[str]) -> None:
        chosen = self._chosen
        names = ("jacobian_thresholds", "edge_curve", "ablation")
        figures = (
            []
            if chosen is None
            else [self._figure(chosen["variant"], name, cell_key(*chosen["cell"])) for name in names]
        )
        self._page(
            "index.html",
            "index.html",
            rows,
            title="What was measured",
            columns=COLUMNS,
            cells=shown,
            models=models,
            sweeps=sweeps,
            sentences=[] if chosen is None else sentences(chosen, rows),
            figures=[figure for figure in figures if figure],
            chosen=chosen,
            missing=self.missing,
        )

    def _cell_page(self, cell: tuple[str, int], rows: list[dict], shown: list) -> None:
        model, layer = cell
        groups = []
        refused = {row["variant"] for row in rows if row["refused"]}
        for variant, entry in self.catalog.variants.items():
            if {variant, entry.compared_with} & refused:
                continue  # what is drawn is of a pair that was there before
            found = [self._figure(variant, name, cell_key(*cell)) for name in self.figures.of_cells]
            if figures := [figure for figure in found if figure]:
                labels = [self.catalog.variants[key].label for key in (entry.compared_with, variant) if key]
                groups.append({"key": variant, "title": " beside ".join(labels), "figures": figures})
        self._page(
            f"cells/{model}/{layer}.html",
            "cell.html",
            rows,
            title=f"{model}, layer {layer}",
            model=model,
            layer=layer,
            layers=[other for held, other in shown if held == model],
            columns=COLUMNS,
            groups=groups,
            provenance=list(self._provenance(cell, rows)),
            sentences=[sentence for row in rows if row["other"] for sentence in sentences(row, rows)],
        )

    def _model_page(self, model: str, rows: list[dict]) -> None:
        figures = [
            figure
            for variant in self.catalog.variants
            for name in self.figures.of_models
            if (figure := self._figure(variant, name, model))
        ]
        self._page(
            f"models/{model}.html",
            "comparison.html",
            rows,
            title=f"{model}: layers compared",
            lead="The same measures at every layer that is measured, each variant in its colour.",
            columns=COLUMNS,
            figures=figures,
            table=None,
        )

    def _sweep_page(self, key: str, rows: list[dict]) -> bool:
        stored = self.stores.sweep(key)
        figures = [figure for name in self.figures.of_sweeps if (figure := self._figure("sweep_runs", name, key))]
        if stored is None:
            self.missing.append(f"sweep_runs of {key}")
            return False
        runs = sweep_table(stored)
        cells = [[_said(value) for value in row] for row in runs.itertuples(index=False)]
        self._page(
            f"sweeps/{key}.html",
            "comparison.html",
            rows,
            title=f"Sweep {key}",
            lead="One training run a row: what a larger λ makes sparser, and what it costs.",
            columns=[],
            figures=figures,
            table={"head": list(runs.columns), "rows": cells},
        )
        return True

    # --- what pages say ---

    def _rows(self, model: str, layer: int) -> Iterator[dict]:
        """What each variant has measured at a cell."""
        for variant in variants_at(self.catalog, model, layer):
            refused = self.refusal(variant, model, layer)
            # what is stored beside a refused pair was measured on the one before it
            measured = {} if refused else numbers(self.stores, variant, model, layer)
            if len(measured) < len(OF_PAIR) and not refused:
                self.missing.append(f"{variant}, {model}, layer {layer}")
            if measured or refused:
                on = settings_of(self.stores, variant, model, layer)
                entry, other = self.catalog.variants[variant], self.catalog.variants[variant].compared_with
                yield {
                    "cell": (model, layer),
                    "model": model,
                    "layer": layer,
                    "variant": variant,
                    "label": entry.label,
                    "colour": entry.colour,
                    "other": other if other and self.catalog.pair(other, model, layer) else None,
                    "numbers": measured,
                    "refused": refused,
                    "documents": {
                        column.title: int(on[column.measure].get(WHOLE_DOCUMENTS, FEW_DOCUMENTS))
                        for column in COLUMNS
                        if column.title in measured and column.measure in on
                    },
                    "on": {column.title: _amount(on[column.measure]) for column in OF_PAIR if column.measure in on},
                    "agreement": None if refused else agreement(self.stores, variant, model, layer),
                    "page": f"cells/{model}/{layer}.html",
                    "explorer": f"{variant}/{model}/{layer}",
                }

    def _telling_cell(self, rows: list[dict]) -> dict | None:
        """The pair that the start page is about: compared with another, with all numbers, at a middle layer."""
        whole = [row for row in rows if row["other"] and len(row["numbers"]) == len(OF_PAIR)]
        first = [row for row in whole if (row["variant"], row["model"]) == (whole[0]["variant"], whole[0]["model"])]
        return first[len(first) // 2] if first else None

    def _opened_first(self, rows: list[dict]) -> str | None:
        """The pair that the explorer opens with: that of the start page, else one that is compared with another."""
        explorable = [row for row in rows if row["explorable"]]
        compared = [row for row in explorable if row["other"]]
        first = [row for row in explorable if row is self._chosen] or compared or explorable
        return first[0]["explorer"] if first else None

    def _provenance(self, cell: tuple[str, int], rows: list[dict]) -> Iterator[dict[str, str]]:
        """What made what the page shows, from the headers of the stored files: of each variant the pair, and what was
        measured on it."""
        for row in rows:
            for name in ("sae_pair", *(() if row["refused"] else self.definitions)):
                find = self.stores.table if name in self.stores.in_tables else self.stores.tensor_file
                if (stored := find(row["variant"], name, *cell)) is not None:
                    made, settings = json.loads(stored.header[PROVENANCE]), stored.settings
                    yield {
                        "variant": row["label"],
                        "asset": made["asset"],
                        "definition": self.definitions.get(name, f"The pair itself: {made['source']}."),
                        "file": stored.relative,
                        "digest": stored.digest,
                        "run": made["run"],
                        "code": made["code_version"],
                        "tokens": _amount(settings),
                    }

    # --- figures ---

    def _figure(self, owner: str, name: str, partition: str) -> dict[str, Any] | None:
        """A figure as a page shows it; its data and its numbers become files."""
        stored = self.stores.figure(owner, name, partition)
        if stored is None:
            if (f"figures/{owner}/{name}", partition) in self.places:
                self.missing.append(f"figures/{owner}/{name} of {partition}")
            return None
        drawn = json.loads(stored.local.read_text(encoding="utf-8"))
        path = f"figures/{stored.relative.removeprefix('figures/').removesuffix('.json')}"
        title, meta = drawn["layout"].get("title") or {}, drawn["layout"].pop("meta", None) or {}
        write_script(self.folder, path, drawn)
        canvas = bool(meta.get("canvas"))
        table = numbers_of(drawn, canvas)
        files = self._files_of(stored, path, table)
        answer = meta.get("answer", "")
        subtitle = plain((title.get("subtitle") or {}).get("text", ""))
        return {
            "id": path,
            "anchor": f"{owner}.{name}",
            "title": plain(title.get("text", name)),
            "answer": answer,
            "subtitle": subtitle.removeprefix(answer).strip(),
            "height": drawn["layout"].get("height", 450),
            "canvas": canvas,
            "table": _rows_shown(table) if len(table) <= MOST_ROWS else None,
            "n_numbers": len(table),
            "files": files,
            "asset": f"figures/{owner}/{name}",
            "provenance": _provenance_of(stored),
        }

    def _files_of(self, stored: StoredFigure, path: str, table: pd.DataFrame) -> dict[str, str]:
        """What can be downloaded of a figure, by the kind of file: the picture, if there is one, and the numbers."""
        files = {}
        if stored.document.exists():
            files["PDF"] = f"data/{path}.pdf"
            (self.folder / files["PDF"]).write_bytes(stored.document.read_bytes())
        files |= {kind: f"data/{path}.{kind.lower()}" for kind in ("CSV", "Parquet")}
        table.to_csv(self.folder / files["CSV"], index=False)
        table.to_parquet(self.folder / files["Parquet"], index=False)
        return files

    # --- the explorer's data ---

    def _explorable(self, row: dict) -> bool:
        """Whether the explorer holds the pair: it is not refused, and its latents are stored."""
        if row["refused"]:
            return False
        model, layer, variant = row["model"], row["layer"], row["variant"]
        latents = [self.stores.table(variant, name, model, layer) for name in ("latent_contexts", "latent_connections")]
        if any(stored is None for stored in (*latents, self.stores.tokens(model))):
            self.missing.append(f"latents of {variant}, {model}, layer {layer}")
            return False
        return True

    def _write_explorer(self, row: dict, held: Container[str]) -> None:
        """Write what the explorer shows of a pair, beside one of the variants that it holds at the same cell."""
        model, layer, variant = row["model"], row["layer"], row["variant"]
        contexts = self.stores.table(variant, "latent_contexts", model, layer)
        connections = self.stores.table(variant, "latent_connections", model, layer)
        ends, starts = self._texts(model)
        other = compared_with(self.catalog, variant, held)
        similar = self._similar(variant, other, model, layer) if other else None
        self.say(f"latents of {variant}, {model}, layer {layer}")
        about = self._of_explorer(row) | {
            "tokens": int(ends[-1]),
            "other": f"{other}/{model}/{layer}" if similar else None,
            "other_label": self.catalog.variants[other].label if similar else None,
            "page": row["page"],
        }
        write_cell(self.folder, row["explorer"], contexts.frame, connections.frame, ends, starts, about, similar)

    def _of_explorer(self, row: dict) -> dict[str, Any]:
        return {
            "cell": row["explorer"],
            "title": f"{row['model']}, layer {row['layer']}",
            "label": row["label"],
            "colour": row["colour"],
        }

    def _texts(self, model: str) -> tuple[np.ndarray, list[int]]:
        """The texts of a model's tokens, written once; the end of each document, the first document of each file."""
        from jsae_core.text import split_documents

        if model not in self._known_texts:
            documents = [document[1:].tolist() for document in split_documents(self.stores.tokens(model))]
            ids = sorted({token for document in documents for token in document})
            text = dict(zip(ids, self.token_texts(model, ids), strict=True))
            starts = write_texts(self.folder, model, [[text[token] for token in document] for document in documents])
            self._known_texts[model] = np.cumsum([len(document) for document in documents]), starts
        return self._known_texts[model]

    def _similar(self, variant: str, other: str, model: str, layer: int) -> dict[str, list] | None:
        """The latent of the compared variant's pair whose decoder row is most alike, for each latent of each side."""
        from jsae_core.similarity import nearest_latents

        pairs = [self.stores.tensor_file(key, "sae_pair", model, layer) for key in (variant, other)]
        if any(pair is None for pair in pairs):
            return None
        found = {
            side: nearest_latents(*(pair[name] for pair in pairs))
            for side, name in (("input", "_W_dec"), ("output", "_W_dec_out"))
        }
        return {
            side: [(number, round(value, 3)) for number, value in zip(latents.tolist(), cosines.tolist(), strict=True)]
            for side, (latents, cosines) in found.items()
        }

    def _copy_static(self) -> None:
        import plotly.offline

        for path in sorted(STATIC.iterdir()):
            shutil.copy(path, self.folder / path.name)
        (self.folder / "plotly.min.js").write_text(plotly.offline.get_plotlyjs(), encoding="utf-8")


def few_documents(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said of errors over few documents: of which model, in which columns (none are named where it is all
    of them), over how many documents."""
    said = []
    for model in dict.fromkeys(row["model"] for row in rows):
        fewest: dict[str, int] = {}
        for measured_on in (row["documents"] for row in rows if row["model"] == model):
            fewest |= {title: min(n, fewest.get(title, n)) for title, n in measured_on.items()}
        for n in sorted(set(fewest.values())):
            if remark := on_errors(n):
                titles = [f"“{title}”" for title in fewest if fewest[title] == n]
                where = "" if len(titles) == len(fewest) else f" in {_in_words(titles)}"
                said.append(f"of {model}{where}: {remark}")
    return said


def _in_words(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])


def _counted(n: int, one: str, several: str) -> str:
    """Return a number with its noun, which `one` and `several` give."""
    return f"{n:,} {one if n == 1 else several}"


def _provenance_of(stored: StoredFigure) -> Mapping[str, str]:
    return json.loads(stored.header.get(PROVENANCE, "{}"))


def _amount(settings: Mapping[str, Any]) -> str:
    """How much a result was measured on, as its settings say; "" where they do not."""
    if "n_tokens" not in settings:
        return ""
    tokens, n = f"{int(settings['n_tokens']):,} tokens", settings.get(WHOLE_DOCUMENTS)
    return tokens if n is None else f"{tokens} of {_counted(n, 'document', 'documents')}"


def _rows_shown(table: pd.DataFrame) -> dict[str, list]:
    return {
        "head": list(table.columns),
        "rows": [[_said(value) for value in row] for row in table.itertuples(index=False)],
    }


def _said(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return with_minus(f"{value:.4g}") if isinstance(value, float) else str(value)
