"""Ranks: processes that torchrun starts, each with the same network and its part of the environments.

    torchrun --nproc-per-node 2 script.py        with ranks():
                                                     rlcore.PPO("CartPole-v1", num_envs=8).learn(100_000)

All that they tell each other goes through one `Share`. Beside the sums, a thread of each rank says twice a second that
it lives and how many sums it has entered, and hears the same of the others: so a rank that died, stopped or hangs has
a name, and nobody waits for it longer than the limit.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlcore.errors import RankError, RlcoreError, UsageError, one_line
from rlcore.tracing import Share, is_recording, sharing

LIMIT = "RLCORE_RANK_TIMEOUT"  # environment variable: seconds that ranks wait for each other
SECONDS = 60.0
BEAT = 0.5  # seconds between signs of life
LOST = 4.0  # seconds without one, after which a rank whose connection broke is dead
GRACE = 5.0  # seconds for what a process is doing, before a thread ends it
GRACE_AFTER_FAULT = 30.0  # the same where another told of an error, which may be one of all ranks
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets


class Ranks(Share):
    """The share of one rank.

    Args:
        store: where ranks meet.
        rank, count, local_rank: this one, how many there are, and which of those on this machine this is.
        limit: seconds that they wait for each other.
    """

    def __init__(self, store: Any, rank: int, count: int, local_rank: int, limit: float):
        self.rank, self.count, self.local_rank, self.limit = rank, count, local_rank, limit
        self.entered = 0  # sums and gatherings so far
        self.watch = Watch(self, store.clone(), limit)
        _operations.own = self

    def sum(self, x: Tensor) -> Tensor:
        if is_recording():
            return torch.ops.rlcore.sum_over_ranks(x.detach())
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with self._together():
            dist.all_reduce(total)
        return total

    def gather(self, thing: Any) -> list[Any] | None:
        things = [None] * self.count if self.rank == 0 else None
        with self._together():
            dist.gather_object(thing, things)
        return things

    def broadcast(self, thing: Any) -> Any:
        things = [thing]
        with self._together():
            dist.broadcast_object_list(things)
        return things[0]

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """What all ranks do at the same time; a RankError where one does not."""
        self.watch.raise_verdict()
        self.entered += 1
        try:
            yield
        except RuntimeError as error:
            self.watch.broke()
            raise self.watch.error() from error

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return self


class _Operations:
    """What a recording holds in the place of a sum: an operation, which asks the ranks of now."""

    own: Ranks | None = None

    def __init__(self):
        self.library = torch.library.Library("rlcore", "FRAGMENT")
        self.library.define("sum_over_ranks(Tensor x) -> Tensor")
        for key in ("CPU", "CUDA"):
            self.library.impl("sum_over_ranks", self._sum, key)
        self.library.impl("sum_over_ranks", torch.empty_like, "Meta")

    def _sum(self, x: Tensor) -> Tensor:
        return x.clone() if is_recording() else self.own.sum(x)


_operations = _Operations()


class Watch:
    """The thread of a rank that tells the others of it and hears of them.

    Args:
        own: the rank.
        store: a connection of its own to where ranks meet.
        limit: as in `Ranks`.

    Attributes:
        verdict: which rank is at fault and the sentence that says so, once that is known.
    """

    def __init__(self, own: Ranks, store: Any, limit: float):
        self.own, self.store, self.limit = own, store, limit
        self.others = [rank for rank in range(own.count) if rank != own.rank]
        self.verdict: tuple[int, str] | None = None
        self._found, self._closing, self._taken = threading.Event(), threading.Event(), threading.Event()
        self._broken_at: float | None = None
        self._heard = {rank: ("", time.monotonic()) for rank in range(own.count)}  # what was heard last, and since when
        self._entered: Any = None  # sums by rank, and since when they stand there
        self._entered_since = time.monotonic()
        self._of_faults = False
        self._talked_at, self._talk_failed = time.monotonic(), False
        store.set_timeout(timedelta(seconds=limit))
        # Two, since nobody can tell how long the store takes to answer where a network is cut.
        self.threads = [threading.Thread(target=x, name="rlcore", daemon=True) for x in (self._talk, self._watch)]

    def start(self) -> None:
        """Tell of this rank, and wait until all others are there; a RankError names one that is not."""
        self.store.set(f"state/{self.own.rank}", self._state())
        try:
            self.store.wait([f"state/{rank}" for rank in self.others], timedelta(seconds=to_come(self.limit)))
        except RuntimeError as error:
            missing = next((rank for rank in self.others if not self.store.check([f"state/{rank}"])), self.others[0])
            sentence = f"rank {missing} did not come within {to_come(self.limit):g} s ({LIMIT})"
            raise RankError(sentence, missing, told=not self._tells(missing)) from error
        self._talked_at = time.monotonic()
        for thread in self.threads:
            thread.start()

    def _state(self) -> str:
        return f"{time.monotonic()} {self.own.entered}"

    def _talk(self) -> None:
        while not self._closing.wait(BEAT):
            try:
                self.store.set(f"state/{self.own.rank}", self._state())
                self._hear()
            except RuntimeError:
                self._talk_failed = True
                return
            self._talked_at = time.monotonic()

    def _watch(self) -> None:
        while not self._closing.wait(BEAT):
            self.verdict = self.verdict or self._judge()
            if self.verdict is not None:
                return self._end()

    def _hear(self) -> None:
        states = self.store.multi_get([f"state/{rank}" for rank in range(self.own.count)])
        asleep = time.monotonic() - self._heard[self.own.rank][1] > 4 * BEAT + 1  # this process was stopped itself
        for rank, state in enumerate(map(bytes.decode, states)):
            if asleep or state != self._heard[rank][0]:
                self._heard[rank] = (state, time.monotonic())

    def _judge(self) -> tuple[int, str] | None:
        """Which rank is at fault, if one is, and why."""
        now = time.monotonic()
        silent = now - self._talked_at
        if silent > self.limit or (self._talk_failed and (self._broken_at or silent > LOST)):
            who = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
            self._talk_failed = True
            return 0, f"{who} died, stopped or cannot be reached"
        if silent > 4 * BEAT:  # what was heard is old
            return None
        states = {rank: (self._heard[rank][0], now - self._heard[rank][1]) for rank in self.others}
        alive = {rank: state for rank, state in states.items() if state[0] not in ("", "done")}
        for rank, (state, _) in alive.items():
            if state.startswith("fault "):
                self._of_faults = True
                return rank, f"rank {rank} stopped: {state.removeprefix('fault ')}"
        for rank, (_, silent) in alive.items():
            if silent > (LOST if self._broken_at else self.limit):
                what = "died" if self._broken_at else f"has not been heard of for {self.limit:g} s ({LIMIT})"
                return rank, f"rank {rank} {what}"
        return self._who_hangs(alive, now)

    def _who_hangs(self, alive: dict[int, tuple[str, float]], now: float) -> tuple[int, str] | None:
        """Who has not come to a sum that this rank has waited in for as long as the limit."""
        entered = {rank: int(state.split()[1]) for rank, (state, _) in alive.items()}
        if self._entered != (counts := (self.own.entered, entered)):
            self._entered, self._entered_since = counts, now
        waited = now - self._entered_since
        slowest = min(entered, key=entered.get, default=None)
        if slowest is not None and entered[slowest] < self.own.entered and waited > self.limit:
            return slowest, f"rank {slowest} hangs: rank {self.own.rank} waited {self.limit:g} s for it ({LIMIT})"
        if self._broken_at and now - self._broken_at > 3 * LOST:
            return self.others[0], f"the connection of rank {self.own.rank} to the others broke"
        return None

    def _end(self) -> None:
        """Let the main thread end this process, or where it cannot, since it waits for who does not come, end it."""
        self._found.set()
        grace = GRACE_AFTER_FAULT if self._of_faults else GRACE
        if not self._taken.wait(grace) and not self._closing.is_set():
            if self._tells(self.verdict[0]):
                print(f"rlcore: {self.verdict[1]}{INTACT}", file=sys.stderr, flush=True)
            os._exit(2)

    def _tells(self, culprit: int) -> bool:
        """Whether it is this rank that tells of the `culprit`: the first that is not at fault."""
        of_rank_0 = culprit == 0 and self._of_faults  # which has told itself
        return not of_rank_0 and self.own.rank == (1 if culprit == 0 else 0)

    def broke(self) -> None:
        """A sum failed, because a rank is gone."""
        self._broken_at = self._broken_at or time.monotonic()

    def error(self) -> RankError:
        """What to raise after `broke`: waits for the verdict."""
        self._found.wait(self.limit + 4 * LOST)
        self._taken.set()
        culprit, sentence = self.verdict or (self.others[0], "the connection to the other ranks broke")
        self.verdict = culprit, sentence
        return RankError(f"{sentence}{INTACT}", culprit, told=not self._tells(culprit))

    def raise_verdict(self) -> None:
        if self.verdict is not None:
            raise self.error()

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error here, and wait until rank 0 knows, since who began these processes ends them all
        when one ends."""
        sentence = str(error) if isinstance(error, RlcoreError) else f"{type(error).__name__}: {one_line(error)}"
        self._closing.set()

        def tell() -> None:
            self.store.set(f"state/{self.own.rank}", f"fault {sentence}")
            if self.own.rank == 0:
                self.store.set("told", "yes")
                _leave()
                time.sleep(2 * BEAT)  # where the store is its own, so that they hear of it
            else:
                _leave()
                self.store.wait(["told"], timedelta(seconds=2 * GRACE))

        self._within(2 * GRACE + BEAT, tell)

    def _within(self, seconds: float, action: Callable[[], None]) -> None:
        """Say something to the store, unless it is lost or does not take it in time."""

        def attempt() -> None:
            with contextlib.suppress(RuntimeError):
                action()

        if not self._talk_failed:
            self.threads.append(threading.Thread(target=attempt, daemon=True))
            self.threads[-1].start()
            self.threads[-1].join(seconds)

    def leave(self) -> None:
        """Let the threads end. One that waits for a store that is lost cannot, and would crash Python when that ends
        before it."""
        _leave()
        for thread in self.threads:
            thread.join(4 * BEAT)
        if any(thread.is_alive() for thread in self.threads):
            atexit.register(_exit)

    def close(self) -> None:
        """The end: the others may go on, and who keeps the store waits for them, but not for who is at fault."""
        self._closing.set()
        awaited = [f"state/{rank}" for rank in self.others if self.verdict is None or rank != self.verdict[0]]

        def tell() -> None:
            if self.own.rank == 0:
                self.store.set("told", "yes")
            self.store.set(f"state/{self.own.rank}", "done")
            while self.own.rank == 0 and awaited and not all(map(_has_ended, self.store.multi_get(awaited))):
                time.sleep(0.05)

        self._within(self.limit if self.verdict is None else GRACE, tell)


def _has_ended(state: bytes) -> bool:
    return state == b"done" or state.startswith(b"fault ")


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(2)


def to_come(limit: float) -> float:
    """Seconds that ranks have to begin, which takes longer than a sum."""
    return max(limit, SECONDS)


INTACT = "; what was saved is whole, and --resume goes on from there"


def _leave() -> None:
    """Close the connections, so that nobody waits at the other end."""
    with contextlib.suppress(Exception):  # the others may be gone
        dist.destroy_process_group()


@contextlib.contextmanager
def ranks() -> Iterator[Share]:
    """Inside, this process learns together with the others that torchrun began; alone, where it began none.

    Raises:
        UsageError: where its environment variables, or the limit, are none that can be used.
        RankError: where another rank did not come, died, stopped or hangs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    own = join()
    try:
        with sharing(own):
            yield own
    except RankError:
        own.watch.close()
        raise
    except BaseException as error:
        if hasattr(error, "code"):  # all ranks were asked to stop, or to show a help
            own.watch.close()
        else:
            own.watch.fail(error)
        if own.rank:  # told by rank 0
            error.told = True  # type: ignore[attr-defined]  # a mark of ours
        raise
    else:
        own.watch.close()
    finally:
        own.watch.leave()


def join() -> Ranks:
    """Meet the other ranks."""
    missing = next((name for name in VARIABLES if name not in os.environ), None)
    if missing is not None:
        raise UsageError(f"{missing} is not set, but WORLD_SIZE is; torchrun sets both, or neither may be")
    limit, world = _limit(), {name: os.environ[name] for name in VARIABLES}
    place = f"{world['MASTER_ADDR']}:{world['MASTER_PORT']}"
    found, error = _meet(to_come(limit))
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        port = world["MASTER_PORT"]
        raise UsageError(f"MASTER_PORT is {port}, but another process has it; it may be another") from error
    if found is None:
        reason = f": {one_line(error)[:200]}" if error else f" ({LIMIT})"
        if error is None:  # the thread is still there
            atexit.register(_exit)
        raise RankError(f"rank 0 could not be met at {place} within {to_come(limit):g} s{reason}", 0) from error
    store, rank, count = found
    local = int(os.environ.get("LOCAL_RANK", rank))
    own = Ranks(dist.PrefixStore("rlcore", store), rank, count, local, limit)
    own.watch.start()
    # The limit is the watch's to tell of, who can name a rank; that of the sums comes after it.
    timeout = timedelta(seconds=limit + 4 * LOST)
    dist.init_process_group(_backend(), store=dist.PrefixStore("sums", store), rank=rank, world_size=count,
                            timeout=timeout)  # fmt: skip
    return own


def _meet(limit: float) -> tuple[tuple[Any, int, int] | None, Exception | None]:
    """Where ranks meet, this one's number, and how many they are; or the error that came in their place. In a thread,
    since whoever has the port may be somebody else, who never answers."""
    results: list[Any] = [None, None]

    def meet() -> None:
        try:
            results[0] = next(dist.rendezvous("env://", timeout=timedelta(seconds=limit)))
        except (RuntimeError, ValueError) as error:
            results[1] = error

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(limit + BEAT)
    return tuple(results)


def _backend() -> str:
    """NCCL between cards, gloo between processors, and between processes that share a card."""
    there = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    has_cards = torch.cuda.is_available() and torch.cuda.device_count() >= there and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if has_cards else "gloo"


def _limit() -> float:
    text = os.environ.get(LIMIT, "")
    with contextlib.suppress(ValueError):
        if 1 <= float(text or SECONDS) < 1e6:
            return float(text or SECONDS)
    raise UsageError(f"{LIMIT} is '{text}', but must be a number of seconds of at least 1")


__all__ = ["Ranks", "join", "ranks"]
