"""Vector environments: making them, stepping them whatever their autoreset mode, saving their state."""

import gymnasium

from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.make import make_vec
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv

__all__ = ["NATIVE_TASKS", "NativeTask", "NativeVectorEnv", "Step", "VectorAdapter", "find_native", "make_vec"]

for _id in ("rlcore/Catch-v0", "rlcore/CatchPixels-v0"):
    gymnasium.register(
        _id,
        entry_point="rlcore.envs.native_vector:NativeEnv",
        vector_entry_point="rlcore.envs.native_vector:NativeVectorEnv",
        kwargs={"task": _id},
    )
