"""Every test starts from the same seeds, one thread, and subnormal numbers that are numbers."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")


def pytest_collection_finish() -> None:
    """What was imported is never looked at again for garbage: exports make so many objects that this took a fifth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


@pytest.fixture(autouse=True)
def _same_seeds() -> None:  # an underscore: a parameter of a test named alike would replace it
    random.seed(0)
    np.random.seed(0)  # scikit-learn reads the global state
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a page of the documentation sets it


@pytest.fixture(scope="session")
def smoke_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The stored smoke run of an experiment, computed once for all tests that read it; none may write to it."""

    @functools.cache
    def computed(name: str) -> Path:
        from experiments.common.runner import run

        return run(name, "smoke", out=tmp_path_factory.mktemp("smoke"))

    return computed
