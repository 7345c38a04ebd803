"""Every backend of the journal shows every behaviour of the suite that the journal ships."""

import pytest

import journal
from journal.testing import CONFORMANCE, memory_journal


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", ["lmdb", "memory"])
def test_backend_conforms(backend, check, tmp_path):
    """The behaviour named by the check holds."""
    if backend == "lmdb":
        check(lambda clock: journal.open(tmp_path / "home", clock=clock))
    else:
        check(lambda clock: memory_journal(clock=clock))
