"""A provider to ask, and a workspace to ask it from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from provider import Handler, Provider, providers

from stillhouse.workspace import Workspace, init_workspace

# The same examples in every run of `make test`; `make test-all` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as the tests' are slower on two threads, on busy cores much slower; sums keep their
    order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def provider() -> Iterator[Callable[[Handler], Provider]]:
    with providers() as make:
        yield make


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return init_workspace(tmp_path)
