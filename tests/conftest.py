import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are slower on several threads, and sums are then not the same on every machine."""
    torch.set_num_threads(1)
