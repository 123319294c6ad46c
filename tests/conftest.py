import os

import pytest
import torch

from rlcore import collect

# Programs are compiled to be compared, not to be fast: what is around their kernels need not be optimised.
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are slower on several threads, and sums are then not the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def rows_are_not_written_out():
    """Which takes the compiler three times as long; tests/test_loops.py has loops of which turns are."""
    collect.WRITTEN_OUT = 1


@pytest.fixture(autouse=True, scope="session")
def programs_of_these_tests_alone(tmp_path_factory):
    """What runs before have compiled must not decide what is tested; child processes see this too. Workers of one run
    share it, each of which has a folder of its own inside that of the run."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["RLCORE_CACHE"] = str(folder / "programs")
