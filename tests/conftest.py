"""Nothing flaky: no network, one thread, fixed seeds."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}

import random

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers in every test, whatever ran before."""
    import torch

    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
