from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, sums, write_samples

from stillhouse.workspace import RunFolder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these lose by threads, most of all where other tests run beside them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "base", template=TEMPLATE, **BASE)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_samples(folder.samples, sums())
    return folder
