"""Vector environments: making them, stepping them whatever their autoreset mode, saving their state."""

from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.make import make_vec
from rlcore.envs.memory_tasks import MEMORY_TASKS
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv, register_native
from rlcore.envs.pettingzoo import PettingZooVectorEnv, from_pettingzoo
from rlcore.envs.rock_paper_scissors import RockPaperScissors
from rlcore.envs.text import TEXT_TASKS, TextTask

__all__ = [
    "NATIVE_TASKS",
    "NativeTask",
    "NativeVectorEnv",
    "PettingZooVectorEnv",
    "RockPaperScissors",
    "Step",
    "TextTask",
    "VectorAdapter",
    "find_native",
    "from_pettingzoo",
    "make_vec",
    "register_native",
]

for _task in (NATIVE_TASKS["rlcore/Catch-v0"], NATIVE_TASKS["rlcore/CatchPixels-v0"], *MEMORY_TASKS, *TEXT_TASKS):
    register_native(_task)
