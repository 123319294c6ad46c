"""Vector environments: making them, stepping them whatever their autoreset mode, saving their state."""

from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.make import make_vec
from rlcore.envs.rock_paper_scissors import RockPaperScissors

__all__ = ["RockPaperScissors", "Step", "VectorAdapter", "make_vec"]
