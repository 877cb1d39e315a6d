"""Dagster's SQLite databases, quicker for tests: a run writes each of some 300 events to two of them.

Here: what of that a test can do without. Not here: what is stored in them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy
from dagster._core.storage.event_log.sqlite import sqlite_event_log


@contextmanager
def quick_databases() -> Iterator[None]:
    """In this process nobody waits for the disk, which matters only to a machine that loses its power (what a killed
    process wrote is there); and the engine of a database is kept, and with it the statements that it has compiled,
    where Dagster makes one for each write."""
    engines: dict[str, sqlalchemy.Engine] = {}
    make = sqlite_event_log.create_engine

    def kept(address: str, **settings: Any) -> sqlalchemy.Engine:
        if address not in engines:
            engines[address] = make(address, **settings)
        return engines[address]

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _without_waiting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_event_log, "create_engine", kept)
        yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", _without_waiting)


def _without_waiting(connection: object, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
