import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are slower on several threads, and sums are then not the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def programs_of_these_tests_alone(tmp_path_factory):
    """What runs before have compiled must not decide what is tested; child processes see this too."""
    os.environ["RLCORE_CACHE"] = str(tmp_path_factory.mktemp("programs"))
