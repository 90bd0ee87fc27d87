"""Data of a training in seconds."""

import pytest
from reliability import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))
