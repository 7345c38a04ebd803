"""Every backend of the store shows every behaviour of the suite that casstore ships."""

import pytest

import casstore
from casstore.testing import CONFORMANCE, memory_store


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", ["lmdb", "memory"])
def test_backend_conforms(backend, check, tmp_path):
    """The behaviour named by the check holds."""
    if backend == "lmdb":
        check(lambda clock: casstore.open(tmp_path / "home", clock=clock))
    else:
        check(lambda clock: memory_store(clock=clock))
