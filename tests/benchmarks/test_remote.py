"""The count of a cell's requests to remote storage. That requests are counted at all: `test_remote_storage.py`."""

from collections import Counter

import pytest

from benchmarks.remote import KINDS, as_text, kind


@pytest.mark.parametrize(
    ("method", "address", "headers", "expected"),
    [
        ("HEAD", "http://here/jsae/a.parquet", {}, "HEAD"),
        ("GET", "http://here/jsae/a.parquet", {}, "GET"),
        ("GET", "http://here/jsae?list-type=2&prefix=a", {}, "LIST"),
        ("PUT", "http://here/jsae/a.parquet", {}, "PUT"),
        ("PUT", "http://here/jsae/a.parquet", {"x-amz-copy-source": "jsae/b.parquet"}, "COPY"),
        ("POST", "http://here/jsae/a.parquet?uploads", {}, "PUT"),
        ("DELETE", "http://here/jsae/a.parquet", {}, "DELETE"),
        ("POST", "http://here/jsae?delete", {}, "DELETE"),
    ],
)
def test_a_request_is_counted_as_what_it_asks_for(method, address, headers, expected):
    assert kind(method, address, headers) == expected


def test_the_table_has_who_asked_most_first_and_sums():
    asked = Counter({("stored.py version", "HEAD"): 2, ("storage.py _upload", "PUT"): 3, ("stored.py local", "GET"): 1})
    lines = [line.split() for line in as_text({"cell": asked}).splitlines()]
    assert lines[0] == ["made", "asked", "by", *KINDS, "all"]
    assert [line[1] for line in lines[1:]] == ["storage.py", "stored.py", "stored.py", "all"]
    assert lines[1][-1] == "3" and lines[-1][1:] == ["all", "2", "1", "0", "3", "0", "0", "6"]
