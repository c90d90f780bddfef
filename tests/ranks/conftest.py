"""Ranks are processes of their own, and import the models of these tests."""

from collections.abc import Iterator

import pytest

from tests.gate import PATH


@pytest.fixture(autouse=True, scope="session")
def found_by_ranks() -> Iterator[None]:
    """The tests are on the path of every process that starts from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        yield
