"""Vector environments: making them, stepping them whatever their autoreset mode, saving their state."""

from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.make import make_vec
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv, register_native
from rlcore.envs.rock_paper_scissors import RockPaperScissors

__all__ = [
    "NATIVE_TASKS",
    "NativeTask",
    "NativeVectorEnv",
    "RockPaperScissors",
    "Step",
    "VectorAdapter",
    "find_native",
    "make_vec",
    "register_native",
]

for _id in ("rlcore/Catch-v0", "rlcore/CatchPixels-v0"):
    register_native(NATIVE_TASKS[_id])
