import os

import pytest
import torch

from rlcore import collect
from rlcore.programs.program import Program, for_compiler_whole, loops_of

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


@pytest.fixture
def not_compiled(monkeypatch):
    """Programs are the graphs that the compiler would be given, but run one operation after another: it takes half a
    minute for each, and most tests ask what we make for it, not what it makes of that. Loops are Python's, where the
    compiler gets scans (tests/test_loops.py). With RLCORE_COMPILE=all in the environment all are compiled after all.

    Compiled in any case: rollouts and learning (tests/test_programs.py), loops (tests/test_loops.py), memory
    (tests/test_memory.py), text (tests/test_text.py), code from outside (tests/test_declared.py).
    """

    def take(program, folder):
        structure, graph = program.recorded.describe(), for_compiler_whole(program.recorded.graph)
        for found in loops_of(graph):
            found.as_scan = False
        program._structure, program.run = structure, torch.inference_mode()(lambda leaves: graph(*leaves))

    if os.environ.get("RLCORE_COMPILE") != "all":
        monkeypatch.setattr(Program, "_take_from_disk", take)
