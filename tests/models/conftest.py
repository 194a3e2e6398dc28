from pathlib import Path

import pytest
import torch
from small_models import make_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models of this size are slower on two threads, on busy cores much slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    from stillhouse.models.local import load_model

    return load_model(str(tiny_folder))
