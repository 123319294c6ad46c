"""Human-normalised scores of Atari games."""

import json
from functools import cache
from importlib import resources

from rlcore.envs.atari import PREFIX


@cache
def table() -> dict[str, dict[str, float]]:
    """`{game: {"random": score, "human": score}}` of 57 games; the file names its source."""
    return json.loads((resources.files(__package__) / "atari_scores.json").read_text("utf-8"))["scores"]


def human_normalized(env_id: str | None, score: float) -> float | None:
    """(score − random) / (human − random): 0 is random play, 1 the human tester; None for what is not in the table."""
    name = (env_id or "").rpartition(":")[2]  # of "module:Name-v0"
    row = next((row for game, row in table().items() if name == f"{PREFIX}{game}-v5"), None)
    return None if row is None else (score - row["random"]) / (row["human"] - row["random"])
