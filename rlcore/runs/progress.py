"""How a run shows itself: a live line on a terminal, plain lines in a pipe, nothing where it is switched off."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable


class Progress:
    """Steps, speed, return and time left.

    Args:
        total_steps: the step at which the run ends.
        start: the step at which this process began.
        show: False for silence.
    """

    REFRESHES_PER_SECOND = 2  # drawing takes most of a millisecond
    LINES = 20  # plain lines per run, unless it is so slow that one every half minute is more

    def __init__(self, total_steps: int, start: int = 0, show: bool = True):
        self.total, self.start, self.began = total_steps, start, time.perf_counter()
        self.live = show and sys.stdout.isatty()
        self.plain = show and not self.live
        self.next_line, self.shown_at = start + total_steps / self.LINES, self.began
        self.bar = self._bar() if self.live else None

    def _bar(self):
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.completed:,}/{task.total:,} steps"),
            BarColumn(),
            TextColumn("{task.fields[speed]} steps/s   return {task.fields[ret]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        bar = RichProgress(*columns, refresh_per_second=self.REFRESHES_PER_SECOND)
        self.task = bar.add_task("train", total=self.total, completed=self.start, speed="-", ret="-")
        bar.start()
        return bar

    def update(self, step: int, mean_return: Callable[[], float]) -> None:
        """Tell where the run stands.

        Args:
            step: where.
            mean_return: gives the mean over the latest episodes, NaN before the first; asked only where it is shown.
        """
        if self.live and (self._is_due() or step >= self.total):
            self._update_bar(step, mean_return())
        elif self.plain and (step >= self.next_line or time.perf_counter() - self.shown_at > 30):
            self._print_line(step, mean_return())

    def _is_due(self) -> bool:
        return time.perf_counter() - self.shown_at >= 1 / self.REFRESHES_PER_SECOND

    def _update_bar(self, step: int, mean_return: float) -> None:
        speed = f"{self._speed(step):,.0f}"
        self.bar.update(self.task, completed=min(step, self.total), speed=speed, ret=_number(mean_return))
        self.shown_at = time.perf_counter()

    def _print_line(self, step: int, mean_return: float) -> None:
        left = max(self.total - step, 0) / max(self._speed(step), 1e-9)
        print(
            f"step {step:,}/{self.total:,}  {self._speed(step):,.0f} steps/s  return {_number(mean_return)}  "
            f"{_duration(left)} left",
            flush=True,
        )
        self.shown_at = time.perf_counter()
        self.next_line = step + self.total / self.LINES

    def _speed(self, step: int) -> float:
        return (step - self.start) / max(time.perf_counter() - self.began, 1e-9)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
