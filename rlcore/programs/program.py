"""Programs: tensor functions recorded once and run without Python.

An iteration on a tiny network spends its time between the kernels, not in them. So the agent's own methods are run once
while their tensor operations are recorded (`Piece`), loops over rows and minibatches become one `scan` each, and the
whole goes through torch's inductor into one shared library (`build`), which is kept on disk for the next run with the
same shapes. Nothing here knows an algorithm.

The same program also runs as plain Python, piece by piece, which is what tests compare it with.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rlcore.programs import matmul
from rlcore.storage.files import FolderLock, InUse
from rlcore.programs.passes import for_compiler, for_python
from rlcore.tracing import recording

Slot = tuple[dict[str, Any], str]
BUILT_FILES = ("program.pt2", "structure.json", "notes.json")
SCRATCH = re.compile(r"([0-9a-f]{24})\.\w+\.building")  # where a program is built, by the name it will have


def parameter_slots(module: nn.Module) -> list[Slot]:
    """Where a module keeps its parameters, in the order of `module.parameters()`."""
    return [_slot(module, name, "_parameters") for name, _ in module.named_parameters()]


def buffer_slots(module: nn.Module) -> list[Slot]:
    """Where a module keeps its buffers, in the order of `module.buffers()`."""
    return [_slot(module, name, "_buffers") for name, _ in module.named_buffers()]


def _slot(module: nn.Module, path: str, kind: str) -> Slot:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), kind), name


@contextmanager
def holding(slots: list[Slot], tensors: list[Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters, buffers or coefficients while a function runs."""
    before = [holder[name] for holder, name in slots]
    for (holder, name), tensor in zip(slots, tensors, strict=True):
        holder[name] = tensor
    try:
        yield
    finally:
        for (holder, name), tensor in zip(slots, before, strict=True):
            holder[name] = tensor


def held(slots: list[Slot]) -> list[Any]:
    """What stands in the slots now."""
    return [holder[name] for holder, name in slots]


class Piece(nn.Module):
    """A function of nested dicts and lists of tensors, as Python until it is recorded.

    Args:
        function: pure; its shapes and its output's structure depend on its inputs' shapes alone.
    """

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function
        self.graph: torch.fx.GraphModule | None = None
        self.places: Any = None  # the output's structure, once recorded

    def forward(self, *inputs: Any) -> Any:
        if self.graph is None:
            return self.function(*inputs)
        return _in_places(self.places, self.graph(*_leaves(inputs)))

    def record(self, *inputs: Any, free_shapes: bool = False) -> Any:
        """Record the function on these inputs; returns what it gives for them.

        Args:
            free_shapes: record for sizes other than those of these inputs too.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        places = _numbered(inputs)

        def flat_function(*leaves: Tensor) -> list[Tensor]:
            outputs = self.function(*_in_places(places, leaves))
            self.places = _numbered(outputs)
            return [x.detach() for x in _leaves(outputs)]

        with recording():
            self.graph = make_fx(flat_function, tracing_mode="symbolic" if free_shapes else "real")(*_leaves(inputs))
        return self(*inputs)


def python_loop(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`carry, y = body(carry, x)` for each row x of `xs`; gives the last carry and all y stacked."""
    places, rows = _numbered(xs), []
    for parts in zip(*(leaf.unbind() for leaf in _leaves(xs)), strict=True):
        carry, y = body(carry, _in_places(places, parts))
        rows.append(_leaves(y))
    return carry, _in_places(_numbered(y), [torch.stack(column) for column in zip(*rows, strict=True)])


def scan_loop(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """The same as one operation of a compiled program; a loop over one row is no loop."""
    from torch._higher_order_ops.scan import scan

    if len(pytree.tree_leaves(xs)[0]) == 1:
        return python_loop(body, carry, xs)

    def separate(carry: Any, x: Any) -> Any:
        return pytree.tree_map(torch.clone, body(carry, x))  # scan allows no output that is an input or another's view

    return scan(separate, carry, xs)


class Program(nn.Module):
    """Pieces put together by `forward`; runs as Python until it is built.

    A subclass makes its pieces in `__init__`, composes them in `forward`, going through `self.loop` for loops, and
    records them in `record(*inputs)`.

    Attributes:
        notes: what its Python finds out beside its outputs, plain data that is kept with the built program.
    """

    inductor_options: ClassVar[dict[str, Any]] = {}
    stays: ClassVar[bool] = False  # whether the tensors of the first input lie in the same place at every call

    def __init__(self) -> None:
        super().__init__()
        self.loop = python_loop
        self.notes: dict[str, Any] = {}

    def record(self, *inputs: Any) -> None:
        raise NotImplementedError

    def rewrite(self, rewriting: Callable[[torch.fx.GraphModule], torch.fx.GraphModule]) -> None:
        """Change what was recorded, piece by piece."""
        for piece in self.children():
            if piece.graph is not None:
                piece.graph = rewriting(piece.graph)

    def free_dimensions(self, *inputs: Any) -> Any:
        """Which dimensions may differ between calls, as torch.export's `dynamic_shapes`; None: none."""
        return None

    def shapes_of(self, inputs: tuple) -> list[Any]:
        """The shapes that a built program is for."""
        return [(str(x.dtype), list(x.shape), str(x.device)) for x in pytree.tree_leaves(inputs)]

    def is_cached(self, inputs: tuple, key: dict[str, Any]) -> bool:
        """Whether the disk cache has this program for inputs of these shapes."""
        return _is_whole(self._folder(inputs, key))

    def make_runner(self, inputs: tuple, key: dict[str, Any], compiled: bool = True) -> Any:
        """The program for inputs of these shapes without the agent's Python: on the CPU compiled, or taken from the
        disk cache where `key` (all else that the program depends on) is there already; on CUDA captured as a graph; or,
        not `compiled`, as recorded operations. A key with `own_code` leaves nothing in the cache."""
        if not compiled:
            return RecordedRunner(self, inputs)
        if any(x.is_cuda for x in pytree.tree_leaves(inputs)):
            return CapturedRunner(self, inputs)
        folder = self._folder(inputs, key)
        runner = self._from_cache(folder) or self._build_once(inputs, folder)
        if "own_code" in key:  # a name that will not come again
            shutil.rmtree(folder)
        return runner

    def _from_cache(self, folder: Path) -> Runner | None:
        """The program that was built there, or None where there is none that is whole."""
        if not _is_whole(folder):
            return None
        try:
            runner, notes = Runner(folder), json.loads((folder / "notes.json").read_text())
        except (OSError, RuntimeError, ValueError):  # removed at this moment, or of a system with other libraries
            return None
        self.notes = notes
        return runner

    def _build_once(self, inputs: tuple, folder: Path) -> Runner:
        """Build into the cache; of processes that want the same program, one does and the others wait for it."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(folder).acquire(wait=True) as lock:
            runner = self._from_cache(folder)
            if runner is not None:
                return runner
            _remove(folder)  # damaged
            _remove_dead_scratch(folder, lock)
            _build(self, inputs, folder)
            runner = Runner(folder)
            self.notes = json.loads((folder / "notes.json").read_text())
            return runner

    def _folder(self, inputs: tuple, key: dict[str, Any]) -> Path:
        return cache_folder() / fingerprint([key, self.shapes_of(inputs)])


class Runner:
    """A built program: call it with the inputs that `Program.forward` takes."""

    def __init__(self, folder: Path):
        structure = pytree.treespec_loads((folder / "structure.json").read_text())
        self.places = pytree.tree_unflatten(range(structure.num_leaves), structure)
        # The loader alone: importing inductor takes longer than a short run.
        self.loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / "program.pt2"), "model", False, 1, -1)

    def __call__(self, *inputs: Any) -> Any:
        return _in_places(self.places, self.flat(_leaves(inputs)))

    def flat(self, leaves: list[Tensor]) -> list[Tensor]:
        """The same without structure: the tensors in the inputs' trees, to the tensors in the outputs'."""
        return self.loader.run(leaves)


def _numbered(tree: Any) -> Any:
    """The tree with a number in the place of each leaf."""
    leaves, structure = pytree.tree_flatten(tree)
    return pytree.tree_unflatten(range(len(leaves)), structure)


# What torch's pytree does, for dicts, lists and tuples alone: its generality takes a tenth of a small iteration.


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in _leaves(part)]


def _in_places(places: Any, leaves: Sequence[Tensor]) -> Any:
    """The tree in which each place's number is replaced by the leaf of that number."""
    if isinstance(places, int):
        return leaves[places]
    if isinstance(places, dict):
        return {name: _in_places(part, leaves) for name, part in places.items()}
    return type(places)(_in_places(part, leaves) for part in places)


class RecordedRunner:
    """A program as its operations, run one by one without the Python and the autograd that led to them.

    Args:
        program: runs its recorded pieces from now on.
        inputs: an example.
    """

    def __init__(self, program: Program, inputs: tuple):
        self.program = program
        program.record(*inputs)
        program.rewrite(for_python)
        self(*inputs)  # what cannot be run this way says so now

    @torch.inference_mode()
    def __call__(self, *inputs: Any) -> Any:
        return self.program(*inputs)


class CapturedRunner:
    """A program captured as one CUDA graph: its Python runs once, its kernels are launched all at once from then on.

    Args:
        program: of fixed shapes.
        inputs: an example; each call copies its inputs over a clone of these, but for what stays in its place.
        graph: False calls the program as it is, which is how this class is tested without a card.
    """

    def __init__(self, program: Program, inputs: tuple, graph: bool = True):
        first, *rest = inputs
        first = first if program.stays else pytree.tree_map(torch.clone, first)
        self.program, self.inputs = program, (first, *pytree.tree_map(torch.clone, rest))
        self.input_leaves = _leaves(self.inputs)
        self.staying = len(_leaves(first)) if program.stays else 0
        self.graph = None
        if not graph:
            return
        program(*self.inputs)  # what is made once, constants on the device, is made before
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels choose their workspaces before they are captured
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self.run()
        self.output_leaves = _leaves(self.outputs)

    def __call__(self, *inputs: Any) -> Any:
        self._play(_leaves(inputs))
        return self.outputs

    def flat(self, leaves: list[Tensor]) -> list[Tensor]:
        """As `Runner.flat`."""
        self._play(leaves)
        return self.output_leaves

    def _play(self, leaves: list[Tensor]) -> None:
        for mine, new in zip(self.input_leaves[self.staying :], leaves[self.staying :], strict=True):
            mine.copy_(new)
        if self.graph is None:
            self.outputs = self.run()
            self.output_leaves = _leaves(self.outputs)
        else:
            self.graph.replay()

    def run(self) -> Any:
        """The program without a look at any value, which a graph cannot follow."""
        with recording():
            return self.program(*self.inputs)


def cache_folder() -> Path:
    """Where built programs are kept: RLCORE_CACHE, or rlcore in the user's cache folder."""
    named = os.environ.get("RLCORE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "rlcore"


def fingerprint(key: Any) -> str:
    """One name for a program: what its maker says of it, the package's sources, torch, threads and processor."""
    machine = platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    parts = [key, torch.__version__, machine, _sources()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@functools.cache
def _sources() -> str:
    """A hash over the sources a program is made from; tens of small files, a few milliseconds."""
    files = sorted(file for file in Path(__file__).parent.parent.rglob("*") if file.suffix in (".py", ".h"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _has_vector_instructions() -> bool:
    """Whether inductor, which tries them out in a process of its own, agrees with torch that there are some."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    return bool(valid_vec_isa_list()) or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX")


def _is_whole(folder: Path) -> bool:
    """Whether all files of a built program are there as they were written; loading a damaged library may crash."""
    try:
        return (folder / "checksum").read_text() == _checksum(folder)
    except (OSError, ValueError):
        return False


def _checksum(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in BUILT_FILES)).hexdigest()


def _lock_of(folder: Path) -> FolderLock:
    return FolderLock(folder.with_name(f"{folder.name}.lock"))


def _remove_dead_scratch(folder: Path, lock: FolderLock) -> None:
    """Remove what processes left that died while they built: whoever builds holds the lock of that name."""
    for other in folder.parent.iterdir():
        match = SCRATCH.fullmatch(other.name)
        if match is None or not lock.held:
            continue
        if match[1] == folder.name:
            _remove(other)
            continue
        with suppress(InUse), _lock_of(folder.with_name(match[1])).acquire():
            _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _build(program: Program, inputs: tuple, folder: Path) -> None:
    """Record, export and compile into `folder`, which appears whole or not at all."""
    import torch._inductor as inductor

    if not _has_vector_instructions():
        warnings.warn(
            "torch's compiler found no vector instructions on this processor, though torch itself uses them; programs "
            "will be several times slower. A file named like a standard module beside the script may be in its way",
            stacklevel=2,
        )
    _, structure = pytree.tree_flatten(program.forward(*inputs))
    program.record(*inputs)
    program.rewrite(for_compiler)
    program.loop = scan_loop
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".building", dir=folder.parent))
    try:
        options = {"cpp_wrapper": True, **matmul.inductor_options(), **program.inductor_options}
        with torch.no_grad(), warnings.catch_warnings(), inductor.config.patch(options):
            warnings.simplefilter("ignore")  # torch's own, about its own internals
            free = program.free_dimensions(*inputs)
            exported = torch.export.export(program, inputs, dynamic_shapes=free, strict=True)
            inductor.aoti_compile_and_package(exported, package_path=str(scratch / "program.pt2"))
        (scratch / "structure.json").write_text(pytree.treespec_dumps(structure))
        (scratch / "notes.json").write_text(json.dumps(program.notes))
        (scratch / "checksum").write_text(_checksum(scratch))
    except BaseException:
        _remove(scratch)
        raise
    finally:
        program.loop = python_loop
    try:
        scratch.rename(folder)
    except OSError:  # another process was quicker, where there are no locks
        shutil.rmtree(scratch)
