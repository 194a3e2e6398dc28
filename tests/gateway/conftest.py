"""What several tests of the gateway stand on."""

import pytest
from behind import Behind
from postgres_server import Unavailable, running
from recorded import schema_of

from stillhouse.guard import config


@pytest.fixture(scope="module")
def behind():
    with Behind() as server:
        yield server


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL of the module's own, which its tests may stop."""
    try:
        with running() as started:
            yield started
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        yield config.Store(folder=str(tmp_path / "guard"))
        return
    with schema_of(request.getfixturevalue("server"), tmp_path / "guard") as made:
        yield made


@pytest.fixture
def file_store(tmp_path):
    return config.Store(folder=str(tmp_path / "guard"))
