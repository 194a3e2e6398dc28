from pathlib import Path

import pytest
from small_models import make_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def always_one_thread(one_thread):
    """Of every test here."""


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    from stillhouse.models.local import load_model

    return load_model(str(tiny_folder))
