"""Every test starts from the same seeds, one thread, and subnormal numbers that are numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def _same_seeds() -> None:  # an underscore: a parameter of a test named alike would replace it
    random.seed(0)
    np.random.seed(0)  # scikit-learn reads the global state
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a page of the documentation sets it
