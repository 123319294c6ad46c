"""Programs: functions of declared state that run without their Python.

An iteration on a tiny network spends its time between the kernels, not in them. So an agent's own methods are run once
while their tensor operations are recorded (rlcore/programs/recording.py), and then

    recorded  these are run one by one, rewritten for cheap calls
    compiled  they go through torch's inductor into one shared library, which is kept on disk for the next run
    captured  on CUDA, their kernels are launched all at once

Nothing here knows an algorithm.
"""

import functools
import hashlib
import json
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.programs import matmul, recurrent
from rlcore.programs.passes import for_compiler, for_python
from rlcore.programs.recording import Loop, Recorded, record, recording_lock
from rlcore.state import Place, write_back
from rlcore.storage.files import FolderLock, InUse, cache_folder
from rlcore.tracing import Tree, in_places, leaves_of, recording

BUILT_FILES = ("program.pt2", "structure.json")
SCRATCH = re.compile(r"([0-9a-f]{24})\.\w+\.building")  # where a program is built, by the name it will have


class Program:
    """A function of declared places that runs without its Python, once it is prepared.

    Args:
        function: what to run; see `record`.
        places: gives the places of declared state as they are now.
        arguments: examples of further inputs, trees of tensors.
        owner: whose attributes the function may read.
        free: names of places, with the dimensions in which they may have another size at each call.
        options: further settings of inductor.
    """

    def __init__(
        self,
        function: Callable[..., Tree],
        places: Callable[[], list[Place]],
        arguments: Sequence[Tree] = (),
        owner: Any = None,
        free: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ):
        self.function, self.find_places, self.arguments = function, places, list(arguments)
        self.owner, self.free, self.options = owner, free or {}, options or {}
        self.run: Callable[[list[Tensor]], Sequence[Tensor]] | None = None

    def __call__(self, *arguments: Tree) -> Tree:
        """Run it: reads the places and writes those that it changes; returns what the function returns."""
        leaves = [x for argument in arguments for x in leaves_of(argument)]
        outputs = self.run([place.tensor(self.device) for place in self._inputs] + leaves)
        write_back(self._changed, outputs[: len(self._changed)])
        return in_places(self._structure["result"], outputs[len(self._changed) :])

    def bind(self) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """The program for many calls between which nothing moves in its places: from the arguments' tensors, flat, to
        those of the result, flat."""
        fixed, run = [place.tensor(self.device) for place in self._inputs], self.run
        return lambda leaves: run(fixed + leaves)

    @property
    def result(self) -> Any:
        """The structure of the result, with a number in the place of each tensor."""
        return self._structure["result"]

    @functools.cached_property
    def device(self) -> torch.device:
        return next(x.device for x in map(Place.get, self.find_places()) if isinstance(x, Tensor))

    @functools.cached_property
    def recorded(self) -> Recorded:
        """What the function came to when it was run for this.

        Raises:
            NotRecordable: says what cannot be recorded.
        """
        return record(self.function, self.find_places(), self.arguments, self.owner, self.free)

    @property
    def reads(self) -> set[str]:
        """Names of the owner's attributes that the function read, where it was recorded in this process."""
        return self.recorded.reads if "recorded" in vars(self) else set()

    def is_cached(self, key: Any) -> bool:
        """Whether the disk cache has this program; `key` is all that it depends on beside its places, None where what
        was recorded tells that."""
        return _is_whole(self._folder(key))

    def prepare(self, key: Any, compiled: bool) -> None:
        """Make it run: `compiled`, which the disk cache has by its `key` (see `is_cached`) from then on, or on CUDA
        captured; or as recorded operations."""
        on_disk = compiled and self.device.type == "cpu"
        if on_disk:
            self._take_from_disk(self._folder(key))
        else:
            self._structure = self.recorded.describe()
        self._inputs, self._changed = map(self.places, (self._structure["inputs"], self._structure["changed"]))
        if not on_disk:
            self._prepare_graph(compiled)

    def places(self, names: list[str]) -> list[Place]:
        """The places of these names, as they are now."""
        found = {place.name: place for place in self.find_places()}
        return [found[name] for name in names]

    def _prepare_graph(self, compiled: bool) -> None:
        graph = for_all(self.recorded.graph, for_python)
        state, arguments = [place.tensor(self.device) for place in self._inputs], leaves_of(self.arguments)
        if compiled:
            self.run = Captured(graph, state, arguments)
        else:
            self.run = torch.inference_mode()(lambda leaves: graph.forward(*leaves))
            self.run([*state, *arguments])  # what cannot be run this way says so now

    def _take_from_disk(self, folder: Path) -> None:
        """Load the program; where it is not there whole, build it. Of processes that want the same, one builds and the
        others wait for it."""
        if self._try_load(folder):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(folder).acquire(wait=True) as lock:
            if not self._try_load(folder):
                _remove(folder)  # damaged
                _remove_dead_scratch(folder, lock)
                build(self, folder)
                self._load(folder)

    def _try_load(self, folder: Path) -> bool:
        """Load the program that was built there; False where none is whole."""
        with suppress(OSError, RuntimeError, ValueError):  # removed at this moment, or of a system with other libraries
            if _is_whole(folder):
                self._load(folder)
                return True
        return False

    def _load(self, folder: Path) -> None:
        self._structure, self.run = json.loads((folder / "structure.json").read_text("utf-8")), load(folder)

    def _folder(self, key: Any) -> Path:
        key, shapes = digest(self.recorded) if key is None else key, []
        named = [(place.name, place.tensor(self.device)) for place in self.find_places()]
        for name, x in [*named, *(("argument", x) for x in leaves_of(self.arguments))]:
            shape = [None if i in self.free.get(name, ()) else size for i, size in enumerate(x.shape)]
            shapes.append((name, str(x.dtype), shape, str(x.device)))
        return cache_folder() / fingerprint([key, shapes, self.options])


def load(folder: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """A program that was built there."""
    # The loader alone: importing inductor takes longer than a short run.
    return torch._C._aoti.AOTIModelPackageLoader(str(folder / "program.pt2"), "model", False, 1, -1).run


def loops_of(graph: nn.Module) -> list[Loop]:
    """All loops in a graph, those inside others last."""
    return [module for module in graph.modules() if isinstance(module, Loop)]


def for_all(graph: torch.fx.GraphModule, rewriting: Callable) -> torch.fx.GraphModule:
    """Rewrite a graph and the bodies of its loops."""
    for loop in loops_of(graph):
        loop.body = rewriting(loop.body)
        loop.before = None if loop.before is None else rewriting(loop.before)
    return rewriting(graph)


def digest(recorded: Recorded) -> str:
    """One name for what was recorded: equal operations and constants have the same."""
    found = hashlib.sha256(json.dumps(recorded.describe(), sort_keys=True).encode())
    for module in recorded.graph.modules():
        if isinstance(module, torch.fx.GraphModule):
            found.update(module.code.encode())
            for name, tensor in sorted(module.named_buffers(recurse=False)):
                found.update(f"{name} {tensor.dtype} {tensor.tolist()}".encode())
        elif isinstance(module, Loop):
            found.update(f"{module.carried} {module.rows} {module.unroll}".encode())
    return found.hexdigest()


class Captured:
    """Operations captured as one CUDA graph: their kernels are launched all at once from then on.

    Args:
        function: of tensors of fixed shapes.
        state: tensors that are read where they lie, for as long as they lie there.
        arguments: examples of further inputs; each call copies its own over clones of these.
        graph: False calls the function as it is, which is how this class is tested without a card.
    """

    def __init__(self, function: Callable, state: list[Tensor], arguments: list[Tensor], graph: bool = True):
        self.function, self.leaves = function, [*state, *map(torch.clone, arguments)]
        self.graph = None
        if not graph:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels choose their workspaces before they are captured
            for _ in range(3):
                self.outputs = self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self._run()

    def __call__(self, leaves: list[Tensor]) -> Sequence[Tensor]:
        for mine, new in zip(self.leaves, leaves, strict=True):
            if mine.data_ptr() != new.data_ptr():
                mine.copy_(new)
        if self.graph is None:
            self.outputs = self._run()
        else:
            self.graph.replay()
        return self.outputs

    @torch.no_grad()
    def _run(self) -> Sequence[Tensor]:
        with recording():
            return self.function(*self.leaves)


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


def _is_whole(folder: Path) -> bool:
    """Whether all files of a built program are there as they were written; loading a damaged library may crash."""
    try:
        return (folder / "checksum").read_text("utf-8") == _checksum(folder)
    except (OSError, ValueError):
        return False


def _checksum(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in BUILT_FILES)).hexdigest()


def _lock_of(folder: Path) -> FolderLock:
    return FolderLock(folder.with_name(f"{folder.name}.lock"))


def _remove_dead_scratch(folder: Path, lock: FolderLock) -> None:
    """Remove what processes left that died while they built; whoever builds holds the lock of that name."""
    for other in folder.parent.iterdir() if lock.held else ():
        match = SCRATCH.fullmatch(other.name)
        if match is None:
            continue
        own = match[1] == folder.name
        with suppress(InUse), nullcontext() if own else _lock_of(folder.with_name(match[1])).acquire():
            _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def build(program: Program, folder: Path) -> None:
    """Record, export and compile into `folder`, which appears whole or not at all."""
    import torch._inductor as inductor
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list  # those that work in a process of its own

    if not valid_vec_isa_list() and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX"):
        warnings.warn(
            "torch's compiler found no vector instructions on this processor, though torch itself uses them; programs "
            "will be several times slower. A file named like a standard module beside the script may be in its way",
            stacklevel=2,
        )
    recorded, arguments = program.recorded, leaves_of(program.arguments)
    graph = for_compiler_whole(recorded.graph)
    there = [place.tensor(program.device) for place in program.places(recorded.inputs)]
    inputs = tuple(x.clone() for x in [*there, *arguments])  # no two of them parts of one
    names = [*recorded.inputs, *("" for _ in arguments)]
    free = [{i: torch.export.Dim(re.sub(r"\W", "_", x)) for i in program.free.get(x, ())} or None for x in names]
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".building", dir=folder.parent))
    try:
        targets = {node.target for part in graph.modules() if hasattr(part, "graph") for node in part.graph.nodes}
        shims = {"aot_inductor.custom_ops_to_c_shims": {**matmul.shims_for(targets), **recurrent.shims_for(targets)}}
        options = {"cpp_wrapper": True, **shims, **program.options}
        with recording_lock, torch.no_grad(), warnings.catch_warnings(), inductor.config.patch(options):
            warnings.simplefilter("ignore")  # torch's own, about its own internals
            shapes = tuple(free) if any(free) else None
            exported = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=True)
            inductor.aoti_compile_and_package(exported, package_path=str(scratch / "program.pt2"))
        (scratch / "structure.json").write_text(json.dumps(recorded.describe()), "utf-8")
        (scratch / "checksum").write_text(_checksum(scratch), "utf-8")
        with suppress(OSError):  # another process was quicker, where there are no locks
            scratch.rename(folder)
    finally:
        _remove(scratch)


def for_compiler_whole(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A graph and the bodies of its loops as inductor makes them fast; loops become scans."""
    for loop in loops_of(graph):
        loop.hoist()
        loop.as_scan = True
    return for_all(graph, for_compiler)
