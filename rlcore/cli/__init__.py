"""The command line: train, pretrain, eval, video, export, compare, bench, report, plot, tune, list."""

import contextlib
import errno
import gc
import importlib
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rlcore.errors import RlcoreError, UsageError, did_you_mean, fitted, printable
from rlcore.version import __version__

OVERVIEW = """usage: rlcore COMMAND ...

On-policy reinforcement learning on one rollout buffer.

  train     train an agent into a run folder, or continue one
  pretrain  copy an expert first: train bc
  eval      play evaluation episodes with a trained agent
  video     film an episode of a trained agent
  export    write its policy to a file that runs without rlcore
  compare   have a person compare clips of a trained agent, for dpo and rewardmodel
  bench     train agents on environments with several seeds each
  report    a page about benches and runs: curves, scores with intervals
  plot      their learning curves as a picture for a paper
  tune      search for the hyperparameters of a preset
  list      algorithms, presets, environments, default hyperparameters

rlcore COMMAND --help explains a command, rlcore train ALGO --help what one sets
first, rlcore list what there is."""
# Where each command is, which is imported when it is asked for: help is there at once.
COMMANDS = {
    "train": ("training", "train"), "pretrain": ("training", "pretrain"),
    "eval": ("policies", "evaluate"), "video": ("policies", "video"), "export": ("policies", "export"),
    "compare": ("policies", "compare"), "bench": ("studies", "bench"), "report": ("studies", "report"),
    "plot": ("studies", "plot"), "tune": ("studies", "tune"), "list": ("listing", "list_all"),
}  # fmt: skip
LONGEST_MESSAGE = 2000


class Meanwhile:
    """A line on a terminal that says what one waits for; it is gone when anything else is printed."""

    def __init__(self, stream: Any):
        self.stream, self.text = stream, ""
        self.is_seen = stream.isatty() and os.environ.get("RANK", "0") == "0"

    def tell(self, text: str) -> None:
        if self.is_seen:
            self.end()
            self.text = text[: shutil.get_terminal_size().columns - 1]  # what goes over two lines could not be undone
            self._write(self.text)

    def end(self) -> None:
        text, self.text = self.text, ""
        if text:
            self._write("\r" + " " * len(text) + "\r")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()


class Output:
    """A stream to print to. Where that fails, `problem` says why, the rest is printed to nowhere, and the work goes on:
    a reader that has seen enough (`| head`) or a terminal that was closed must not end a training run."""

    def __init__(self, stream: Any, meanwhile: Meanwhile):
        self.stream, self.meanwhile = stream, meanwhile
        self.problem: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has every letter

    def write(self, text: str) -> int:
        self.meanwhile.end()
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self.problem = self.problem or error
            # A stream need not be a file.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *_: f"{_sentence(message)}\n"
    # There are no streams where they were closed before we began.
    streams = [stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    meanwhile = Meanwhile(streams[0])
    out, err = (Output(stream, meanwhile) for stream in streams)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = _run(arguments)
        finally:
            meanwhile.end()
            out.flush()
            err.flush()
        if out.problem is None or out.problem.errno == errno.EPIPE:  # `rlcore list | head`
            return code
        failed = _fail(f"standard output could not be written: {out.problem.strerror or out.problem}", 2)
        return code if code or arguments[0] == "train" else failed


def _run(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except SystemExit as shown:  # argparse has printed help
        return int(shown.code or 0)
    except RlcoreError as error:
        code = getattr(error, "code", 2)
        return code if getattr(error, "told", False) else _fail(error, code)  # by another rank
    except (ConnectionError, EOFError) as error:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        return _fail(f"the connection to another process, such as one that steps environments, broke ({what})", 2)
    except MemoryError as error:
        return _fail(f"there is not enough memory{f': {error}' if str(error) else ''}", 2)


def _fail(message: Any, code: int) -> int:
    print(_sentence(message), file=sys.stderr)
    return code


def _sentence(message: Any) -> str:
    return fitted(f"rlcore: {_printable(message)}", sys.stderr)


def _printable(message: Any) -> str:
    """One line without what would move a terminal's cursor; names out of files come into messages."""
    text = str(message)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE // 2]}...{text[-LONGEST_MESSAGE // 2 :]}"
    return printable(text)


def _load() -> None:
    """Import what takes seconds. Garbage is not collected meanwhile: there is none, and to look for it among all that
    was imported takes a tenth of the time, then and later. Ctrl-C ends the process: some imports would swallow it."""
    gc.disable()
    handled = signal.getsignal(signal.SIGINT)
    ours = handled is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    try:
        if ours:
            signal.signal(signal.SIGINT, _interrupted)
        for name in ("torch", "gymnasium", "rlcore.agents"):
            importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
        if ours:
            signal.signal(signal.SIGINT, handled)


def _interrupted(*_: Any) -> NoReturn:
    _fail("interrupted", 130)
    sys.stderr.flush()
    os._exit(130)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(*(fitted(line, sys.stdout, 12) for line in OVERVIEW.splitlines()), sep="\n")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise UsageError(f"'{command}' is not a command of rlcore{near}; there are {', '.join(COMMANDS)}")
    if rest and command != "list":
        sys.stdout.meanwhile.tell("rlcore: loading torch and gymnasium ...")
        if "torch" not in sys.modules and not {"-h", "--help"} & set(rest):
            _load()
    module, function = COMMANDS[command]
    return getattr(importlib.import_module(f"rlcore.cli.{module}"), function)(rest)
