"""How a bench shows itself: a table that changes on a terminal, a line for each cell in a pipe."""

import contextlib
import statistics
import sys
import time
from collections import defaultdict
from typing import Any, Self

from rlcore.runs.results import Result
from rlcore.runs.suite import Cell

ROWS = 20  # of the table, the rest in one line


class BenchProgress(contextlib.AbstractContextManager):
    """Cells that have ended, failed and run, for each agent on each environment.

    Args:
        cells: all of the bench.
        results: by agent, environment and seed; kept up to date by the bench.
        show: nothing is shown where it is False.
    """

    REFRESHES_PER_SECOND = 2

    def __init__(self, cells: list[Cell], results: dict[tuple[str, str, int], Result], show: bool):
        self.cells, self.results, self.show = cells, results, show
        self.seeds: defaultdict[tuple[str, str], list[int]] = defaultdict(list)  # of each agent on each environment
        for cell in cells:
            self.seeds[cell.agent, cell.env_id].append(cell.seed)
        keys = ((cell.agent, cell.env_id, cell.seed) for cell in cells)
        self.over = {key for key in keys if key in results}  # those that have ended
        self.live: Any = None
        self.drawn_at = 0.0

    def __enter__(self) -> Self:
        if self.show and sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(auto_refresh=False)  # no thread: the bench forks
            self.live.start()
        elif self.show and len(self.over):
            print(f"{len(self.over)} of {len(self.cells)} cells have ended before", flush=True)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self._draw([])
            self.live.stop()

    def ended(self, result: Result) -> None:
        """Tell of a cell that has just ended."""
        self.over.add(result.cell)
        if self.show and self.live is None:
            name = f"{result.agent} on {result.env_id}, seed {result.seed}"
            print(f"{len(self.over)}/{len(self.cells)}  {name}: {_told(result)}", flush=True)

    def told(self, sentence: str) -> None:
        """Tell something else."""
        if self.show:
            (print if self.live is None else self.live.console.print)(sentence)

    def running(self, cells: list[Cell]) -> None:
        """Tell which cells are running, as often as one likes."""
        now = time.perf_counter()
        if self.live is not None and now - self.drawn_at >= 1 / self.REFRESHES_PER_SECOND:
            self._draw(cells)
            self.drawn_at = now

    def _draw(self, running: list[Cell]) -> None:
        self.live.update(self.table(running), refresh=True)

    def table(self, running: list[Cell]) -> Any:
        """What is drawn, with those cells that run now."""
        from rich.table import Table
        from rich.text import Text

        table = Table("agent", "environment", "done", "running", "failed", "score", box=None, pad_edge=False)
        now: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for cell in running:
            now[cell.agent, cell.env_id].append(cell.seed)
        pairs = sorted(self.seeds, key=lambda pair: pair not in now)  # those that run first
        for pair in pairs[:ROWS]:
            table.add_row(*map(Text, self._row(*pair, now[pair])))  # as it is: a name may look like markup
        more = f", {len(pairs) - ROWS} rows more" if len(pairs) > ROWS else ""
        table.caption = f"{len(self.over)} of {len(self.cells)} cells{more}"
        table.caption_justify = "left"
        return table

    def _row(self, agent: str, env_id: str, now: list[int]) -> tuple[str, ...]:
        """What is told of an agent on an environment; `now` are the seeds that run."""
        seeds = self.seeds[agent, env_id]
        ended = [r for seed in seeds if (r := self.results.get((agent, env_id, seed))) is not None]
        done = [result for result in ended if result.state == "done"]
        score = f"{statistics.fmean(result.score for result in done):.1f}" if done else ""
        seeds_now = ", ".join(f"seed {seed}" for seed in now)
        return agent, env_id, f"{len(done)}/{len(seeds)}", seeds_now, str(len(ended) - len(done) or ""), score


def _told(result: Result) -> str:
    if result.state == "failed":
        return f"failed: {result.error}"
    return f"{result.measure} {result.score:.4g}, {result.steps:,} steps in {result.seconds:.1f} s"
