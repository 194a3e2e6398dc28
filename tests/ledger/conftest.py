"""A workspace on each of the databases that a ledger may lie in."""

import contextlib

import psycopg
import pytest
from postgres_server import Unavailable, running

from stillhouse.ledger.postgres import with_schema
from stillhouse.workspace import init_workspace


@pytest.fixture(scope="session")
def postgres():
    """One server for all tests; each makes a schema of its own there."""
    try:
        with running() as server:
            yield server
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgres"])
def either_workspace(request, tmp_path):
    if request.param == "sqlite":
        yield init_workspace(tmp_path)
        return
    url = with_schema(request.getfixturevalue("postgres").url)
    yield init_workspace(tmp_path, url)
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as db:
        db.execute(f"DROP SCHEMA IF EXISTS {url.rpartition('%3D')[2]} CASCADE")


@pytest.fixture
def file_workspace(tmp_path):
    """For what is said of SQLite's file alone."""
    return init_workspace(tmp_path)
