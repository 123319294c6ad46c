"""Recurrent layers in C, for float32 on the CPU: a row of a small layer is microseconds of arithmetic and ten times
that in calls of tensor operations. recurrent.h is compiled into each program, and once per machine for all else.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.storage.files import cache_folder

SOURCE = "".join(Path(__file__).with_name(name).read_text("utf-8") for name in ("tile.h", "recurrent.h"))
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-x", "c++")
ROWS, ROW = {"L": ("first", 0), "S": ("first", 1), "H": ("w", 1)}, {"S": ("x", 0), "F": ("x", 1), "H": ("h", 1)}
CELL = ("first", "w_x", "w_h", "b_x", "b_h")
KERNELS = {  # where each finds its sizes, its inputs (`first` is bool, all else float32), and sizes of its outputs
    "gru_rows": (ROWS, ("x", "h", "first", "w", "b"), ("L S H", "L S 4 H", "L S H")),
    "gru_slopes": (ROWS, ("slope", "gates", "before", "first", "w"), ("L S 4 H",)),
    "lstm_rows": (ROWS, ("x", "h", "c", "first", "w"), ("L S H", "L S H", "L S 4 H", "L S H")),
    "lstm_slopes": (ROWS, ("slope", "gates", "before", "first", "w"), ("L S 4 H",)),
    "gru_row": (ROW, ("x", "h", *CELL), ("S H",)),
    "lstm_row": (ROW, ("x", "h", "c", *CELL), ("S H", "S H")),
}


def is_there(x: Tensor) -> bool:
    """Whether these kernels can work on tensors like `x [...]`."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


@functools.cache
def library() -> Any:
    """The compiled kernels, None where there is no compiler or it fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    names = "".join(f'extern "C" decltype(&rl_{name}) const {name} = &rl_{name};\n' for name in KERNELS)
    source = f"#include <stdlib.h>\n#include <string.h>\n{SOURCE}\n{names}"
    key = hashlib.sha256(f"{source} {compiler} {FLAGS} {_processor()}".encode()).hexdigest()[:24]
    path = cache_folder() / f"{key}.so"
    with suppress(OSError, subprocess.CalledProcessError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / "recurrent.so"
                command = [compiler, *FLAGS, "-", "-o", str(made)]
                subprocess.run(command, input=source.encode(), check=True, capture_output=True)
                made.replace(path)
        return ctypes.CDLL(str(path))
    return None


def _processor() -> str:
    """What `-march=native` depends on, as far as torch tells it."""
    with suppress(OSError):
        return next((x for x in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if x.startswith("flags")), "")
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def kernel(name: str) -> Callable[..., Any]:
    """One of these as a function of tensors, for where microseconds count: the operator of its name takes ten more."""
    sizes, inputs, outputs = KERNELS[name]
    address = ctypes.c_void_p.in_dll(library(), name).value
    arguments = [ctypes.c_long] * len(sizes) + [ctypes.c_void_p] * (len(inputs) + len(outputs))
    call = ctypes.CFUNCTYPE(None, *arguments)(address)

    def run(*tensors: Tensor) -> Any:
        dense, room = [x.contiguous() for x in tensors], _room(name, *tensors)
        call(*_sizes(name, tensors).values(), *[x.data_ptr() for x in dense], *[x.data_ptr() for x in room])
        return room[0] if len(room) == 1 else tuple(room)

    return run


def _sizes(name: str, tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """L, S, H and so on of these inputs."""
    return {size: tensors[i].shape[dim] for size, i, dim in _where(name)}


@functools.cache
def _where(name: str) -> list[tuple[str, int, int]]:
    """Of each size its name, and the number and dimension of the input that has it."""
    sizes, inputs, _ = KERNELS[name]
    return [(size, inputs.index(tensor), dim) for size, (tensor, dim) in sizes.items()]


def _room(name: str, *tensors: Tensor) -> list[Tensor]:
    """Room for what a kernel puts out."""
    sizes = tuple(_sizes(name, tensors).items())
    return [tensors[0].new_empty(shape) for shape in _shapes(name, sizes)]


@functools.cache
def _shapes(name: str, sizes: tuple[tuple[str, int], ...]) -> list[list[int]]:
    return [_shape(output, dict(sizes)) for output in KERNELS[name][2]]


def _shape(output: str, sizes: dict[str, int]) -> list[int]:
    """`"L S 4 H"` in numbers; a number multiplies what follows it."""
    shape, times = [], 1
    for word in output.split():
        if word in sizes:
            shape.append(times * sizes[word])
        times = 1 if word in sizes else int(word)
    return shape


def _fake(name: str, *tensors: Tensor) -> Any:
    room = _room(name, *tensors)
    return room[0] if len(room) == 1 else tuple(room)


_fragment = torch.library.Library("rlcore", "FRAGMENT")
for _name, (_, _inputs, _outputs) in KERNELS.items():
    _result = "Tensor" if len(_outputs) == 1 else f"({', '.join(['Tensor'] * len(_outputs))})"
    _fragment.define(f"{_name}({', '.join(f'Tensor {x}' for x in _inputs)}) -> {_result}")
    _fragment.impl(_name, lambda *tensors, name=_name: kernel(name)(*tensors), "CPU")
    torch.library.register_fake(f"rlcore::{_name}", functools.partial(_fake, _name), lib=_fragment)
OPERATORS = {getattr(torch.ops.rlcore, name).default: name for name in KERNELS}


_DENSE = """
/* The numbers of a tensor row by row, copied where they lie otherwise. */
static inline AOTITorchError rl_dense(AtenTensorHandle tensor, long size, void **data, void **owned, int64_t **sizes) {
  int64_t *strides, dim, dense = 1, count = 1;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, data));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  *owned = NULL;
  for (int64_t d = dim - 1; d >= 0; d--) {
    if ((*sizes)[d] != 1 && strides[d] != count) dense = 0;
    count *= (*sizes)[d];
  }
  if (dense) return 0;
  char *copy = (char *)malloc(count * size);
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = i, from = 0;
    for (int64_t d = dim - 1; d >= 0; d--) from += rest % (*sizes)[d] * strides[d], rest /= (*sizes)[d];
    memcpy(copy + i * size, (char *)*data + from * size, size);
  }
  *data = *owned = copy;
  return 0;
}
"""


def _shim(name: str) -> str:
    """The C function that stands for a kernel in compiled programs, its declaration in front."""
    sizes, inputs, outputs = KERNELS[name]
    takes = [f"AtenTensorHandle t_{x}" for x in inputs] + [f"AtenTensorHandle *out_{i}" for i in range(len(outputs))]
    head = f"AOTITorchError aoti_torch_cpu_{name}({', '.join(takes)})"
    lines = [f'{head};\n__attribute__((visibility("hidden"))) {head} {{']
    for x in inputs:
        lines.append(f"void *{x}, *own_{x}; int64_t *n_{x};")
        lines.append(_checked(f"rl_dense(t_{x}, {1 if x == 'first' else 4}, &{x}, &own_{x}, &n_{x})"))
    lines += [f"int64_t {size} = n_{tensor}[{dim}];" for size, (tensor, dim) in sizes.items()]
    for i, output in enumerate(outputs):
        shape = [size.replace(" ", " * ") for size in re.findall(r"\d+ \w+|\w+", output)]
        strides = [" * ".join(shape[dim + 1 :]) or "1" for dim in range(len(shape))]
        lines.append(f"int64_t size_{i}[] = {{{', '.join(shape)}}}, stride_{i}[] = {{{', '.join(strides)}}};")
        kind = "aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0"
        lines.append(_checked(f"aoti_torch_empty_strided({len(shape)}, size_{i}, stride_{i}, {kind}, out_{i})"))
        lines.append(f"void *data_{i}; {_checked(f'aoti_torch_get_data_ptr(*out_{i}, &data_{i})')}")
    given = [f"(const {'unsigned char' if x == 'first' else 'float'} *){x}" for x in inputs]
    given += [f"(float *)data_{i}" for i in range(len(outputs))]
    lines.append(f"rl_{name}({', '.join([*sizes, *given])});")
    lines += [*(f"free(own_{x});" for x in inputs), "return 0;", "}"]
    return "\n".join(lines)


def _checked(call: str) -> str:
    return f"AOTI_TORCH_ERROR_CODE_CHECK({call});"


def shims_for(targets: set[Any]) -> dict[Any, list[str]]:
    """What inductor must be told to compile these kernels into a program, whose operations are `targets`; nothing where
    none of them is among these."""
    used = [op for op in OPERATORS if op in targets]
    shims = {op: [_shim(OPERATORS[op])] for op in used}
    for op in used[:1]:  # in front of the first; what is spliced in is declared extern
        shims[op] = [f"int rl_recurrent;\n{SOURCE}\n{_DENSE}", *shims[op]]
    return shims
