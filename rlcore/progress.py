"""How a run shows itself: a live line on a terminal, plain lines in a pipe, nothing where it is switched off."""

import math
import sys
import time
from collections.abc import Callable


class Progress:
    """Steps, speed, return and time left of a run that ends at `total_steps`, since this process began at `start`."""

    REFRESHES_PER_SECOND = 2  # drawing takes most of a millisecond
    FOR_STEPS, FOR_ELAPSED = 80, 110  # columns of a terminal that has room for these
    LINES = 20  # plain lines per run, unless it is so slow that one every half minute is more

    def __init__(self, total_steps: int, start: int = 0, show: bool = True):
        self.total, self.start = total_steps, start
        self.began = self.shown_at = time.perf_counter()
        self.next_line = start + total_steps / self.LINES
        self.bar = self._bar() if show and (sys.stdout.isatty() or _in_notebook()) else None
        self.plain = show and self.bar is None

    def _bar(self):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        width = Console().width
        done = "{task.completed:,}/{task.total:,} steps" if width >= self.FOR_STEPS else "{task.percentage:.0f}%"
        elapsed = (TimeElapsedColumn(), TextColumn("elapsed,")) if width >= self.FOR_ELAPSED else ()
        columns = (
            TextColumn(done), BarColumn(bar_width=None), TextColumn("{task.fields[speed]} steps/s"),
            TextColumn("return {task.fields[ret]}"), *elapsed, TimeRemainingColumn(), TextColumn("left"),
        )  # fmt: skip
        bar = RichProgress(*columns, refresh_per_second=self.REFRESHES_PER_SECOND, expand=True)
        self.task = bar.add_task("train", total=self.total, completed=self.start, speed="-", ret="-")
        bar.start()
        return bar

    def update(self, step: int, mean_return: Callable[[], float]) -> None:
        """Tell that the run is at `step`; `mean_return` gives the mean over the latest episodes, NaN before the first,
        and is asked only where it is shown."""
        now = time.perf_counter()
        waited, speed = now - self.shown_at, (step - self.start) / max(now - self.began, 1e-9)
        if self.bar is not None and (waited >= 1 / self.REFRESHES_PER_SECOND or step >= self.total):
            shown = {"speed": f"{speed:,.0f}", "ret": _number(mean_return())}
            self.bar.update(self.task, completed=min(step, self.total), **shown)
        elif self.plain and (step >= self.next_line or waited > 30):
            left = _duration(max(self.total - step, 0) / max(speed, 1e-9))
            where = f"step {step:,}/{self.total:,}  {speed:,.0f} steps/s"
            print(f"{where}  return {_number(mean_return())}  {left} left", flush=True)
            self.next_line = step + self.total / self.LINES
        else:
            return
        self.shown_at = time.perf_counter()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _in_notebook() -> bool:
    """Whether rich can draw into a notebook's cell."""
    if "ipykernel" not in sys.modules:
        return False
    from rich import get_console

    return get_console().is_jupyter


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
