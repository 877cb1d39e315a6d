"""Counts the requests that a cell makes of a remote storage: all pairs, measures and figures of a layer of the default
catalog, and the site, stored on an S3 server on this machine.

    python -m benchmarks.remote [--layer LAYER] [--device auto|cpu|cuda]

Each request is counted by its kind and by the line of this project that asked for it. What is counted depends neither
on the machine nor on how fast it is, but for checkpoints, which are written by the clock. Not here: how long a cell
takes (`cell.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import dagster as dg
from aiobotocore.httpsession import AIOHTTPSession
from s3fs import S3FileSystem
from tabulate import tabulate
from transformers.utils.logging import disable_progress_bar

import jsae_assets
from benchmarks.cell import MODEL, cell_jobs, layer_and_device
from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import cell_key
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import TOKENS_JOB
from tests.s3_server import BUCKET, s3_server

KINDS = ("HEAD", "GET", "LIST", "PUT", "COPY", "DELETE")
OURS = Path(jsae_assets.__file__).parent
Asked = Counter[tuple[str, str]]  # by the file and the function that asked, and the kind of the request


@contextlib.contextmanager
def counted_requests() -> Iterator[Asked]:
    """Context manager that counts the requests of this process to S3."""
    asked: Asked = Counter()
    send = AIOHTTPSession.send

    async def counted(self, request):
        asked[_asking(), kind(request.method, request.url, request.headers)] += 1
        return await send(self, request)

    with mock.patch.object(AIOHTTPSession, "send", counted):
        yield asked


def kind(method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return what a request to S3 asks for, one of `KINDS`; of an upload in parts each request is a PUT."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if method == "GET":
        return "LIST" if "list-type" in query else "GET"
    if method == "POST":
        return "DELETE" if "delete" in query else "PUT"
    if method == "PUT" and any(name.lower() == "x-amz-copy-source" for name in headers):
        return "COPY"
    return method


def _asking() -> str:
    """Return the file and the function of `jsae_assets` that wait for an answer. (s3fs sends from a thread of its
    own.)"""
    here = threading.get_ident()
    for thread, frame in sys._current_frames().items():
        if thread != here and (found := _own_function(frame)):
            return found
    return "elsewhere"


def _own_function(frame: FrameType | None) -> str | None:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(OURS):
            return f"{path.relative_to(OURS).as_posix()} {frame.f_code.co_name}"
        frame = frame.f_back
    return None


def requests_of_cell(catalog: Catalog, model: str, layer: int, device: str) -> dict[str, Asked]:
    """Make a model's tokens, one cell and the site on an S3 server. Return the requests of each of the three."""
    asked: dict[str, Asked] = {}
    with s3_server() as server, tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, server | {"JSAE_STORAGE": f"s3://{BUCKET}/storage"}):
            S3FileSystem.clear_instance_cache()  # whose members have the address of another server
            definitions = build_definitions(catalog, resources={"compute": Compute(device=device)})
            with dg.DagsterInstance.local_temp(folder) as instance:
                report(catalog, instance)
                for name, job, partition in _jobs(definitions, model, layer):
                    with counted_requests() as counts:
                        job.execute_in_process(instance=instance, partition_key=partition)
                    asked[name] = asked.get(name, Counter()) + counts
            S3FileSystem.clear_instance_cache()
    return asked


def _jobs(definitions: dg.Definitions, model: str, layer: int) -> Iterator[tuple[str, dg.JobDefinition, str | None]]:
    """Yield the jobs with what they make and at which partition."""
    yield "tokens", definitions.resolve_job_def(TOKENS_JOB), model
    cell = cell_key(model, layer)
    for job in cell_jobs(definitions, cell):
        yield "cell", job, cell
    yield "site", definitions.resolve_job_def("make_site"), None


def as_text(asked: Mapping[str, Asked]) -> str:
    """Return a table: a line for each function that asked, with the numbers of each kind, and sums for each part."""
    rows = []
    for part, counts in asked.items():
        functions = sorted({function for function, _ in counts}, key=lambda name: -_total(counts, name))
        rows += [
            (part, name, *(counts[name, kind] or "" for kind in KINDS), _total(counts, name)) for name in functions
        ]
        sums = [sum(number for (_, of), number in counts.items() if of == kind) for kind in KINDS]
        rows.append((part, "all", *sums, counts.total()))
    return tabulate(rows, ("made", "asked by", *KINDS, "all"), tablefmt="plain", disable_numparse=True)


def _total(counts: Asked, function: str) -> int:
    return sum(counts[function, kind] for kind in KINDS)


def main() -> None:
    layer, device = layer_and_device("benchmarks.remote", __doc__.split("\n\n")[0])
    disable_progress_bar()
    print(as_text(requests_of_cell(load_catalog(), MODEL, layer, device)))


if __name__ == "__main__":
    main()
