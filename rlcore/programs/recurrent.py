"""Loops of recurrent layers in C, for float32 on the CPU: a row of a small layer is a microsecond of arithmetic and ten
times that in calls of tensor operations. recurrent.h is compiled into each program, and once per machine for all else.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.storage.files import cache_folder

SOURCE = "".join(Path(__file__).with_name(name).read_text() for name in ("tile.h", "recurrent.h"))
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-x", "c++")
LOOPS = {  # the inputs of each, and the sizes of its outputs `[L, S, size · H]`; `first` is bool, all else float32
    "gru_rows": (("x", "h", "first", "w", "b"), (1, 4, 1)),
    "gru_slopes": (("slope", "gates", "before", "first", "w"), (4,)),
    "lstm_rows": (("x", "h", "c", "first", "w"), (1, 1, 4, 1)),
    "lstm_slopes": (("slope", "gates", "before", "first", "w"), (4,)),
}


def is_there(x: Tensor) -> bool:
    """Whether these loops can work on tensors like `x [...]`."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


@functools.cache
def library() -> Any:
    """The compiled loops, None where there is no compiler or it fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    names = "".join(f'extern "C" decltype(&rl_{name}) const {name} = &rl_{name};\n' for name in LOOPS)
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
        return next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "")
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def _function(name: str) -> Any:
    arguments = [ctypes.c_long] * 3 + [ctypes.c_void_p] * (len(LOOPS[name][0]) + len(LOOPS[name][1]))
    address = ctypes.c_void_p.in_dll(library(), name).value
    return ctypes.CFUNCTYPE(None, *arguments)(address)


def _sizes(name: str, tensors: tuple[Tensor, ...]) -> tuple[int, int, int]:
    """L, S and H of these inputs."""
    named = dict(zip(LOOPS[name][0], tensors, strict=True))
    return (*named["first"].shape, named["w"].shape[1])


def _run(name: str, *tensors: Tensor) -> Any:
    dense, (one, *more) = [x.contiguous() for x in tensors], _room(name, *tensors)
    _function(name)(*_sizes(name, tensors), *(x.data_ptr() for x in (*dense, one, *more)))
    return (one, *more) if more else one


def _room(name: str, *tensors: Tensor) -> list[Tensor]:
    """Room for what a loop puts out."""
    L, S, H = _sizes(name, tensors)
    return [tensors[0].new_empty(L, S, size * H) for size in LOOPS[name][1]]


def _fake(name: str, *tensors: Tensor) -> Any:
    one, *more = _room(name, *tensors)
    return (one, *more) if more else one


_fragment = torch.library.Library("rlcore", "FRAGMENT")
for _name, (_inputs, _outputs) in LOOPS.items():
    _result = "Tensor" if len(_outputs) == 1 else f"({', '.join(['Tensor'] * len(_outputs))})"
    _fragment.define(f"{_name}({', '.join(f'Tensor {x}' for x in _inputs)}) -> {_result}")
    _fragment.impl(_name, functools.partial(_run, _name), "CPU")
    torch.library.register_fake(f"rlcore::{_name}", functools.partial(_fake, _name), lib=_fragment)


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
    """The C function that stands for a loop in compiled programs, its declaration in front."""
    inputs, outputs = LOOPS[name]
    takes = [f"AtenTensorHandle t_{x}" for x in inputs] + [f"AtenTensorHandle *out_{i}" for i in range(len(outputs))]
    head = f"AOTITorchError aoti_torch_cpu_{name}({', '.join(takes)})"
    lines = [f'{head};\n__attribute__((visibility("hidden"))) {head} {{']
    for x in inputs:
        lines.append(f"void *{x}, *own_{x}; int64_t *n_{x};")
        lines.append(_checked(f"rl_dense(t_{x}, {1 if x == 'first' else 4}, &{x}, &own_{x}, &n_{x})"))
    lines.append("int64_t L = n_first[0], S = n_first[1], H = n_w[1];")
    for i, size in enumerate(outputs):
        lines.append(f"int64_t size_{i}[] = {{L, S, {size} * H}}, stride_{i}[] = {{S * {size} * H, {size} * H, 1}};")
        kind = "aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0"
        lines.append(_checked(f"aoti_torch_empty_strided(3, size_{i}, stride_{i}, {kind}, out_{i})"))
        lines.append(f"void *data_{i}; {_checked(f'aoti_torch_get_data_ptr(*out_{i}, &data_{i})')}")
    given = [f"(const {'unsigned char' if x == 'first' else 'float'} *){x}" for x in inputs]
    given += [f"(float *)data_{i}" for i in range(len(outputs))]
    lines += [f"rl_{name}(L, S, H, {', '.join(given)});", *(f"free(own_{x});" for x in inputs), "return 0;", "}"]
    return "\n".join(lines)


def _checked(call: str) -> str:
    return f"AOTI_TORCH_ERROR_CODE_CHECK({call});"


def shims_for(targets: set[Any]) -> dict[Any, list[str]]:
    """What inductor must be told to compile these loops into a program, whose operations are `targets`; nothing where
    none of them is among these."""
    ops = {getattr(torch.ops.rlcore, name).default: name for name in LOOPS}
    used = [op for op in ops if op in targets]
    shims = {op: [_shim(ops[op])] for op in used}
    for op in used[:1]:  # in front of the first; what is spliced in is declared extern
        shims[op] = [f"int rl_recurrent;\n{SOURCE}\n{_DENSE}", *shims[op]]
    return shims
