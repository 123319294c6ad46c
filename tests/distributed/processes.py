"""Runs the same Python in several ranks, as torchrun would, and gives back what each returned."""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RUNNER = """
import pickle, sys
import torch
torch.set_num_threads(1)
from rlcore.distributed.ranks import ranks
from tests.distributed import work
with ranks():
    result = getattr(work, sys.argv[1])(*pickle.loads(bytes.fromhex(sys.argv[2])))
with open(sys.argv[3], "wb") as file:
    pickle.dump(result, file)
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(rank, count, port, **more):
    """What torchrun would set."""
    world = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR="127.0.0.1")
    world |= dict(MASTER_PORT=port, OMP_NUM_THREADS=1, PYTHONPATH=ROOT, PYTHONWARNINGS="ignore") | more
    return {**os.environ, **{name: str(value) for name, value in world.items()}}


def start(arguments, count=2, port=None, **more):
    """A process of each rank with these arguments of Python."""
    port, pipes = port or free_port(), dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [
        subprocess.Popen([sys.executable, *arguments(rank)], env=environment(rank, count, port, **more), **pipes)
        for rank in range(count)
    ]


def together(name, *arguments, count=2):
    """What `work.NAME(*arguments)` gives in each of `count` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(count)]
        given = pickle.dumps(arguments).hex()
        processes = start(lambda rank: ["-c", RUNNER, name, given, str(files[rank])], count)
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        return [pickle.loads(file.read_bytes()) for file in files]
