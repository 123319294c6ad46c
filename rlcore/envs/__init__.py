"""Vector environments: making them, stepping them whatever their autoreset mode, saving their state."""

from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.make import make_vec

__all__ = ["Step", "VectorAdapter", "make_vec"]
