"""The table of a wandb project's training runs, kept in step with wandb.

Here: which runs are requested, how they are read page by page, how runs that ended, go on or were deleted are tracked.
Not here: what a row of the table holds (`training_runs.py`), how wandb is reached and what its errors mean
(`wandb_client.py`), drawing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from jsae_core.training_runs import TrainingRun, run_row, runs_of, runs_table, utc_time
from jsae_core.wandb_client import PROJECT_PATH, WandbError, connect, unbroken

if TYPE_CHECKING:
    import wandb

ENDED = ("finished", "crashed", "failed", "killed")
RUNS_A_PAGE = 100
MOST_READS = 3  # attempts to read as many runs as wandb counts, before that is an error
# runs with a heartbeat so shortly before the newest one are fetched again, since one may change after its page was read
OVERLAP = timedelta(minutes=10)
MOST_NAMED = 10  # malformed runs that an error names


@dataclass(frozen=True)
class Synced:
    """The result of a sync.

    Attributes:
        table: the table of runs; the same object as the known table, if nothing changed (nor the rules by which it is
            made).
        changed: how many runs are new or differ.
        deleted: ids of the runs that this sync found deleted in wandb.
        unfinished: ids of the runs that may go on.
    """

    table: pd.DataFrame
    changed: int
    deleted: tuple[str, ...]
    unfinished: tuple[str, ...]


def sync_runs(path: str, known: pd.DataFrame | None, folder: str | Path, *, full: bool = False) -> Synced:
    """Bring the table of a wandb project's runs up to date.

    One small request tells whether there is anything new. If so, this fetches the runs with a heartbeat since the
    newest known one, and the runs that had not ended. Runs that are gone from wandb are kept and marked as deleted;
    runs that come back are unmarked. If the number of runs still disagrees, all are fetched.

    Changes without a new heartbeat (an edited name or tag; an old run deleted while another old one is restored) are
    noticed only when the run is fetched for another reason, so use `full` now and then.

    Args:
        path: "entity/project".
        known: the table of the last sync; None fetches every run.
        folder: where the client keeps its files.
        full: fetch every run, and make the table anew.

    Raises:
        ValueError: the path is malformed, or `known` is not a table of runs.
        WandbError: wandb did not give the runs, gave malformed ones, or never as many as it counts. Keep the known
            table then.
    """
    if not PROJECT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not a wandb project; expected entity/project")
    before = {} if known is None else {run.run_id: run for run in runs_of(known)}
    api = connect(path.split("/")[0], folder)
    if known is None or full:
        after = _with_all(api, path, before)
    else:
        total, newest = _state_upstream(api, path)
        after = before
        if _unfinished(before) or (total, newest) != (len(_present(before)), _newest_heartbeat(before)):
            after = _with_changed(api, path, before)
        if total != len(_present(after)):
            after = _with_all(api, path, before)
    changed = [run_id for run_id, run in after.items() if run != before.get(run_id)]
    table = runs_table(after.values())
    return Synced(
        table=known if known is not None and not full and _same(table, known) else table,
        changed=len(changed),
        deleted=tuple(sorted(run_id for run_id in changed if after[run_id].deleted)),
        unfinished=tuple(sorted(_unfinished(after))),
    )


def _same(table: pd.DataFrame, known: pd.DataFrame) -> bool:
    """Whether two tables are equal, including columns that other rules would derive from the same raw values. Tags may
    be lists or, in a table from a file, arrays."""
    tags = [[*map(tuple, made["tags"])] for made in (table, known)]
    return tags[0] == tags[1] and table.drop(columns="tags").equals(known.drop(columns="tags"))


# --- Requests to wandb

Runs = dict[str, TrainingRun]


def _state_upstream(api: wandb.Api, path: str) -> tuple[int, datetime | None]:
    """The number of runs in wandb, and their newest heartbeat: the only request of a sync that finds nothing new."""
    project = next(_pages(api, path, order="-heartbeat_at", per_page=1, lazy=True))
    heartbeats = [edge["node"]["heartbeatAt"] for edge in project["runs"]["edges"]]
    with suppress(ValueError):  # a malformed time counts as new; fetching the runs then tells which one has it
        return project["runCount"], utc_time(heartbeats[0]) if heartbeats and heartbeats[0] else None
    return project["runCount"], None


def _with_all(api: wandb.Api, path: str, known: Runs) -> Runs:
    fetched = _fetch(api, path, {})
    return known | fetched | {run_id: _marked_deleted(run) for run_id, run in known.items() if run_id not in fetched}


def _with_changed(api: wandb.Api, path: str, known: Runs) -> Runs:
    newest = _newest_heartbeat(known)
    if newest is None:
        return _with_all(api, path, known)
    since = newest - OVERLAP
    unfinished = _unfinished(known)
    # unfinished runs too, because a run may end (crash) without another heartbeat
    conditions: list[dict[str, Any]] = [{"heartbeatAt": {"$gte": _as_wandb_writes(since)}}]
    conditions += [{"name": {"$in": sorted(unfinished)}}] if unfinished else []
    fetched = _fetch(api, path, conditions[0] if len(conditions) == 1 else {"$or": conditions})
    expected = unfinished | {
        run_id for run_id, run in _present(known).items() if run.updated_at and run.updated_at >= since
    }
    return known | fetched | {run_id: _marked_deleted(known[run_id]) for run_id in expected if run_id not in fetched}


def _fetch(api: wandb.Api, path: str, filters: dict[str, Any]) -> Runs:
    """All runs that the filters select, as many as wandb counts. A page may repeat a run and leave out another one,
    which must not be taken for deleted."""
    for _ in range(MOST_READS):
        found, counted = _read_once(api, path, filters)
        if len(found) == counted:
            return found
    raise WandbError(
        f"wandb counts {counted} runs of {path} but its pages hold {len(found)} different ones, in {MOST_READS} "
        "attempts, so the table stays as it was. Sync again later"
    )


def _read_once(api: wandb.Api, path: str, filters: dict[str, Any]) -> tuple[Runs, int]:
    """The runs that the pages hold, and the number of runs by wandb's count on the last page."""
    found: Runs = {}
    counted = 0
    malformed: list[str] = []
    address = _address(api, path)
    # ordered by creation, which does not change while the pages are read
    for project in _pages(api, path, filters=filters, order="+created_at", per_page=RUNS_A_PAGE, lazy=False):
        counted = project["runCount"]
        for edge in project["runs"]["edges"]:
            try:
                run = _run_of(edge["node"], address)
            except ValueError as error:
                malformed.append(f"{edge['node'].get('name') or '(no id)'} ({error})")
            else:
                found[run.run_id] = run
    if malformed:
        more = f" and {len(malformed) - MOST_NAMED} more" if len(malformed) > MOST_NAMED else ""
        raise WandbError(
            f"wandb gave {len(malformed)} malformed runs of {path} besides {len(found)} good ones, so the table stays "
            f"as it was: {', '.join(malformed[:MOST_NAMED])}{more}. Sync again; if they are the same, repair or delete "
            f"them at {address}"
        )
    return found, counted


def _pages(api: wandb.Api, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    """The raw answers of a query, page by page; of each the object `project`."""
    api.flush()  # otherwise the client gives its cached answers to this query
    runs = api.runs(path, **query)
    answer = None
    while True:
        unbroken(f"the runs of {path}", partial(_read_on, runs, answer))
        if runs.last_response is answer:
            return
        answer = runs.last_response
        yield answer["project"]


def _read_on(runs: Any, last: dict[str, Any] | None) -> None:
    """Have the client fetch the page after `last`, if there is one."""
    try:
        # the client first iterates over what it has read, without a request, and then fetches the next page
        for _ in runs:
            if runs.last_response is not last:
                return
    except Exception:
        # one malformed run makes the client give up its whole page, but the raw answer still holds the good runs
        if runs.last_response is last or not runs.last_response.get("project"):
            raise


def _address(api: wandb.Api, path: str) -> str:
    """The address of the project's page for a browser."""
    from wandb import Settings

    settings = Settings(base_url=api.settings["base_url"], app_url_override=os.environ.get("WANDB_APP_URL"))
    return f"{settings.app_url.rstrip('/')}/{quote(path)}"


# --- Answers of wandb


def _run_of(node: Mapping[str, Any], address: str) -> TrainingRun:
    """The run that a node of wandb's answer describes. Raises ValueError, saying why, if the run is malformed."""
    config = {
        name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        for name, entry in _object("configuration", node["config"]).items()
    }
    return run_row(
        run_id=node["name"],
        name=node["displayName"],
        state=node["state"],
        created_at=node["createdAt"],
        updated_at=node["heartbeatAt"],
        url=f"{address}/runs/{quote(str(node['name']), safe='')}",
        tags=node["tags"] or (),
        config=config,
        summary=_object("summary", node["summaryMetrics"]),
    )


def _object(what: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        # as the client reads it: texts may hold control characters
        value = json.loads(text, strict=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"its {what} is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"its {what} is not a JSON object")
    return value


def _as_wandb_writes(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


# --- Known runs


def _present(runs: Runs) -> Runs:
    return {run_id: run for run_id, run in runs.items() if not run.deleted}


def _unfinished(runs: Runs) -> set[str]:
    return {run_id for run_id, run in _present(runs).items() if run.state not in ENDED}


def _newest_heartbeat(runs: Runs) -> datetime | None:
    return max((run.updated_at for run in _present(runs).values() if run.updated_at), default=None)


def _marked_deleted(run: TrainingRun) -> TrainingRun:
    return replace(run, deleted=True)
