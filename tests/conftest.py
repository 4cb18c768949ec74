"""Shared settings of the tests: two threads at most, no network, no plugin of the machine that runs them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MINIRLHF_LOAD_PLUGINS"] = ""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def double():
    """float64 as the default dtype: for identities that hold at 1e-10."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
