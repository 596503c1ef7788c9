"""Servers that several tests ask."""

import pytest
from fake_model import FakeModel
from running import running


@pytest.fixture(scope="module")
def fake():
    """A server of the fake model with default limits."""
    with running(FakeModel()) as server:
        yield server
