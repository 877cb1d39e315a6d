"""Shows the results: as a table for the terminal and for a page, and as two figures.

Here: turning the rows of `results.py` into text and into Plotly figures in the project's style. Not here: measuring.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tabulate import tabulate

from benchmarks.parts import PARTS
from benchmarks.results import Results, read_all
from benchmarks.shapes import SHAPES
from jsae_core.figures import export
from jsae_core.figures.style import GRID, INK, apply_style, plain

DOCS = Path(__file__).parent.parent / "docs"
TABLE_START, TABLE_END = "<!-- table -->", "<!-- /table -->"
# the aims at the shape pythia-70m: how many times as fast as the original, and how many percent of the limit
TARGETS = {"histogram": 5, "ablation": 100, "function_shapes": 10, "quality": 2, "training": 3}
LIMIT_TARGETS = {"histogram": 50, "ablation": 50}
NAMES = {"function_shapes": "function shapes", "examples": "example Jacobians", "training": "training step"}
COLOURS = dict(zip(SHAPES, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"), strict=True))
SYMBOLS = ("circle", "diamond", "square", "triangle-up")  # one for each device
SERIES = {"tokens": "tokens", "d_sae": "d_sae", "k": "k"}  # the series of the part growth, and the titles of their axes
HEADINGS = ("part", "shape", "setting", "ours", "original", "ratio", "of the limit", "bound by", "memory", "differs")
MiB = 2**20


def as_text(results: Results) -> str:
    """Return the table of one device for the terminal."""
    table = tabulate(_cells(results.rows), HEADINGS, tablefmt="plain", disable_numparse=True)
    return "\n".join([table, *_notes(results.rows)])


def as_markdown(results: Results) -> str:
    """Return the table of one device in Markdown, below a line with the device, the dates and the versions."""
    lines = [_joined(HEADINGS), _joined("---" for _ in HEADINGS), *(_joined(cells) for cells in _cells(results.rows))]
    notes = [f"- {note}" for note in _notes(results.rows)]
    return "\n".join([f"**{results.device}** ({_measured_when(results.rows)})", "", *lines, "", *notes]).rstrip()


def write_pages(directory: Path, docs: Path = DOCS) -> None:
    """Print the tables of all devices, write them between the marks in docs/speed.md, and draw the figures into `docs`.

    Raises:
        FileNotFoundError: there are no results yet.
        RuntimeError: there is no browser that can draw the figures.
    """
    all_results = read_all(directory)
    if not all_results:
        raise FileNotFoundError(f"{directory} contains no results; run python -m benchmarks first")
    table = "\n\n".join(as_markdown(results) for results in all_results)
    print(table)
    page = docs / "speed.md"
    if page.exists():
        page.write_text(with_table(page.read_text(), table))
    for name, figure in (("speed", speed_figure(all_results)), ("growth", growth_figure(all_results))):
        picture, problem = export.png(figure)
        if picture is None:
            raise RuntimeError(problem)
        (docs / f"{name}.png").write_bytes(picture)


def with_table(page: str, table: str) -> str:
    """Return the page with the table in place of the text between the marks; unchanged if it has no marks."""
    marked = re.compile(f"{re.escape(TABLE_START)}.*?{re.escape(TABLE_END)}", re.DOTALL)
    return marked.sub(lambda _: f"{TABLE_START}\n{table}\n{TABLE_END}", page)


def _cells(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    return [_row_cells(row) for row in in_order(rows)]


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows sorted by part, then by shape; rows with the same part and shape keep their order."""
    parts, shapes = list(PARTS), list(SHAPES)
    return sorted(rows, key=lambda row: (parts.index(row["part"]), shapes.index(row["shape"])))


def _row_cells(row: dict[str, Any]) -> list[str]:
    memory, limit = row["peak_memory_bytes"], row.get("limit")
    return [
        NAMES.get(row["part"], row["part"]),
        row["shape"],
        row["setting"],
        _speed(row["ours_seconds"], row["unit"]),
        _speed(row["original_seconds"], row["unit"]) if "original_seconds" in row else "",
        _ratio(row["ratio"]) if "ratio" in row else "",
        _share(row["share_of_limit"], limit["of"]) if limit else "",
        limit["bound"] if limit else "",
        "not measured" if memory is None else _size(memory),
        f"{max(comparison['difference'] for comparison in row['agreement']):.1g}" if row.get("agreement") else "",
    ]


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return remarks that are too long for a cell; shapes with the same remark are listed together."""
    ((usual_commit, _), *_) = Counter(row["commit"] for row in rows).most_common()
    shapes: dict[tuple[str, str], list[str]] = {}
    for row in in_order(rows):
        subject = ", ".join(filter(None, (NAMES.get(row["part"], row["part"]), row["setting"])))
        notes = [row["note"]] if row["note"] else []
        if "over_traditional" in row:
            notes.append(f"{_ratio(row['over_traditional'])} the time of a step at lambda 0")
        if row["commit"] != usual_commit:
            notes.append(f"measured at commit {row['commit']}, the others at {usual_commit}")
        for note in notes:
            shapes.setdefault((subject, note), []).append(row["shape"])
    return [f"{subject} ({', '.join(names)}): {note}" for (subject, note), names in shapes.items()]


def _speed(seconds: dict[str, float], unit: str) -> str:
    """Return the speed in words: units per second, or seconds per unit for steps and pairs."""
    median = seconds["median"]
    if unit in ("step", "pair"):
        return f"{median:.2g} s/{unit}" if median >= 0.1 else f"{1e3 * median:.2g} ms/{unit}"
    return f"{float(f'{1 / median:.3g}'):,.{0 if median <= 0.1 else 1}f} {unit}s/s"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3g}x ({ratio['min']:.3g} to {ratio['max']:.3g})"


def _share(share: float, of: str) -> str:
    percent = f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1g}%"
    return f"{percent} ({of})" if of else percent


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MiB:.0f} MiB"


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured_when(rows: Sequence[dict[str, Any]]) -> str:
    dates, torches = (sorted({row[name] for row in rows}) for name in ("date", "torch"))
    commits = sorted({row["commit"] + ("+" if row["dirty"] else "") for row in rows})
    return f"{_range(dates)}; commit {', '.join(commits)}; torch {', '.join(torches)}; {_rates(rows)}"


def _range(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _rates(rows: Sequence[dict[str, Any]]) -> str:
    products = _range([f"{row['machine']['matmul'] / 1e9:.0f}" for row in _by_rate(rows, "matmul")])
    copies = _range([f"{row['machine']['copy'] / 1e9:.0f}" for row in _by_rate(rows, "copy")])
    return f"matrix products {products} GFLOP/s, copies {copies} GB/s read and written"


def _by_rate(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the row with the lowest and the row with the highest rate."""
    ordered = sorted(rows, key=lambda row: row["machine"][name])
    return [ordered[0], ordered[-1]]


def speed_figure(all_results: Sequence[Results]) -> go.Figure:
    """Draw, for each part, how many times as fast as the original's procedure it is, and the share of the limit that it
    reaches. Each shape has a colour, each device a symbol. Whiskers reach from the slowest to the fastest round."""
    shown = [
        (results.device, symbol, row)
        for symbol, results in zip(itertools.cycle(SYMBOLS), all_results, strict=False)
        for row in in_order(results.rows)
        if "ratio" in row and _is_main(row)
    ]
    parts = [part for part in reversed(list(PARTS)) if any(row["part"] == part for _, _, row in shown)]
    groups = list(dict.fromkeys((row["shape"], device, symbol) for device, symbol, row in shown))
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05)
    for number, (shape, device, symbol) in enumerate(groups):
        rows = [row for other, _, row in shown if other == device and row["shape"] == shape]
        shift = 0.6 * ((len(groups) - 1) / 2 - number) / len(groups)
        heights = [parts.index(row["part"]) + shift for row in rows]
        common = {
            "name": plain(shape if len(all_results) == 1 else f"{shape}, {device}"),
            "legendgroup": f"{shape}, {device}",
            "mode": "markers",
            "marker": {"color": COLOURS[shape], "symbol": symbol, "size": 13},
        }
        figure.add_trace(go.Scatter(_ratios(rows), y=heights, **common), 1, 1)
        shares = [100 * row["share_of_limit"] for row in rows]
        figure.add_trace(go.Scatter(x=shares, y=heights, showlegend=False, **common), 1, 2)
    _add_targets(figure, parts)
    figure.update_yaxes(
        tickvals=list(range(len(parts))),
        ticktext=[_tick(part) for part in parts],
        range=[-0.5, len(parts) - 0.5],
        showgrid=False,
    )
    figure.update_xaxes(title_text="times as fast as the original", **_log_axis(1, 3), col=1)
    figure.update_xaxes(title_text="share of the limit (%)", **_log_axis(1, 3), col=2)
    for between in range(1, len(parts)):
        figure.add_hline(y=between - 0.5, line={"color": GRID, "width": 1})
    subtitle = (
        f"{'; '.join(results.device for results in all_results)}. Whiskers: slowest and fastest round. The aims are "
        "for pythia-70m. For ablation and function shapes, the limit is that of intervening directly."
    )
    return apply_style(
        figure, "Speed against the original's procedure and the limit", "", subtitle, 90 + 75 * len(parts)
    )


def _tick(part: str) -> str:
    name = NAMES.get(part, part)
    return f"{name}<br>(aim: {TARGETS[part]}x)" if part in TARGETS else name


def _is_main(row: dict[str, Any]) -> bool:
    """Whether the figure shows a row: it shows one for each part and shape, for training the steps with the
    Jacobian."""
    return row["part"] != "training" or "over_traditional" in row


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ratios = [row["ratio"] for row in rows]
    return {
        "x": [ratio["median"] for ratio in ratios],
        "error_x": {
            "array": [ratio["max"] - ratio["median"] for ratio in ratios],
            "arrayminus": [ratio["median"] - ratio["min"] for ratio in ratios],
            "width": 4,
        },
    }


def _add_targets(figure: go.Figure, parts: Sequence[str]) -> None:
    for column, aims in ((1, TARGETS), (2, LIMIT_TARGETS)):
        targets = {part: aims[part] for part in parts if part in aims}
        figure.add_trace(
            go.Scatter(
                x=list(targets.values()),
                y=[parts.index(part) for part in targets],
                name="aim",
                mode="markers",
                marker={"symbol": "line-ns", "size": 40, "line": {"color": INK, "width": 2.5}},
                showlegend=column == 1,
                hoverinfo="skip",
            ),
            1,
            column,
        )


def growth_figure(all_results: Sequence[Results]) -> go.Figure:
    """Draw the time per token and the peak memory against tokens, d_sae and k, on log axes, with a line for each shape
    and device."""
    figure = make_subplots(2, len(SERIES), shared_xaxes="columns", shared_yaxes=True, vertical_spacing=0.05)
    names: set[str] = set()
    for symbol, results in zip(itertools.cycle(SYMBOLS), all_results, strict=False):
        for column, series in enumerate(SERIES, start=1):
            rows = [row for row in results.rows if row["part"] == "growth" and row["series"] == series]
            for shape in dict.fromkeys(row["shape"] for row in rows):
                points = [row for row in rows if row["shape"] == shape]
                name = f"{shape}, {results.device}"
                common = {
                    "x": [row["value"] for row in points],
                    "name": plain(name),
                    "legendgroup": name,
                    "mode": "lines+markers",
                    "line": {"color": COLOURS[shape], "width": 2},
                    "marker": {"symbol": symbol, "size": 12},
                }
                times = [1e6 * row["ours_seconds"]["median"] for row in points]
                figure.add_trace(go.Scatter(y=times, showlegend=name not in names, **common), 1, column)
                names.add(name)
                if all(row["peak_memory_bytes"] is not None for row in points):
                    sizes = [row["peak_memory_bytes"] / MiB for row in points]
                    figure.add_trace(go.Scatter(y=sizes, showlegend=False, **common), 2, column)
                figure.update_xaxes(tickvals=common["x"], ticktext=[_short(value) for value in common["x"]], col=column)
    figure.update_xaxes(type="log")
    figure.update_yaxes(**_log_axis(1, 2, 5))
    for column, title in enumerate(SERIES.values(), start=1):
        figure.update_xaxes(title_text=title, row=2, col=column)
    figure.update_yaxes(title_text="µs per token", row=1, col=1)
    figure.update_yaxes(title_text="peak memory (MiB)", row=2, col=1)
    subtitle = "Histogram with mean |J|; memory includes the tables. Where time per token is flat, time grows linearly."
    return apply_style(figure, "How cost grows", "", subtitle, 620)


def _short(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def _log_axis(*digits: int) -> dict[str, Any]:
    """Return the settings of a log axis with ticks at these digits of every decade."""
    ticks = [digit * 10.0**exponent for exponent in range(-2, 7) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.12g}" for tick in ticks], "tickangle": 0}
