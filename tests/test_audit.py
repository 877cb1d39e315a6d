"""What `make audit` says of what pip-audit reports."""

import pytest

from tools.audit import CLEAN, UNKNOWN, VULNERABLE, verdict

FINE = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-1", "fix_versions": ["9.1"], "description": "..."}]}
SKIPPED = {"name": "xxhash", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([FINE], CLEAN, "1 of 1 locked packages were looked up"),
        ([FINE, BAD], VULNERABLE, "pillow 9.0: CVE-1, fixed in 9.1"),
        ([BAD, SKIPPED], VULNERABLE, "NOT AUDITED: xxhash"),
        ([FINE, SKIPPED], UNKNOWN, "NOT AUDITED: xxhash"),
        ([SKIPPED], UNKNOWN, "this machine cannot reach a list of known vulnerabilities"),
        ([], UNKNOWN, "0 of 0"),
    ],
)
def test_only_what_was_looked_up_and_has_none_counts_as_clean(packages, status, words):
    said, found = verdict(packages)
    assert found == status and words in said
