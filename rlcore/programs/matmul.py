"""Matrix products of compiled programs on processors with AVX2 or AVX-512.

torch's products come from MKL, which on processors of other makers than its own keeps to 256-bit instructions, and
whose calls are made for larger matrices than a network of 64 units has. Programs use the kernel in matmul.h instead
where it pays. It is compiled into each program that has such products, so nothing has to be installed or loaded.
"""

import sys
from pathlib import Path
from typing import Any

import torch

SOURCE = "".join(Path(__file__).with_name(name).read_text("utf-8") for name in ("tile.h", "matmul.h"))
_SHIM = """
AOTITorchError aoti_torch_cpu_matmul_small(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle *);

KERNEL

static inline __attribute__((always_inline)) AOTITorchError rl_view(
    AtenTensorHandle tensor, float **data, int64_t **sizes, int64_t **strides) {
  void *pointer;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &pointer));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, strides));
  *data = (float *)pointer;
  return 0;
}

__attribute__((visibility("hidden"))) AOTITorchError aoti_torch_cpu_matmul_small(
    AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle *out) {
  float *a, *b;
  int64_t *a_sizes, *a_strides, *b_sizes, *b_strides;
  rl_view(left, &a, &a_sizes, &a_strides);
  rl_view(right, &b, &b_sizes, &b_strides);
  int64_t sizes[2] = {a_sizes[0], b_sizes[1]}, strides[2] = {b_sizes[1], 1};
  void *c;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, out));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &c));
  rl_matmul(a_sizes[0], b_sizes[1], a_sizes[1], a, a_strides[0], a_strides[1], b, b_strides[0], b_strides[1],
            (float *)c);
  return 0;
}

BATCHED

__attribute__((visibility("hidden"))) AOTITorchError aoti_torch_cpu_matmul_batched(
    AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle *out) {
  float *a, *b;
  int64_t *a_sizes, *a_strides, *b_sizes, *b_strides;
  rl_view(left, &a, &a_sizes, &a_strides);
  rl_view(right, &b, &b_sizes, &b_strides);
  int64_t rows = a_sizes[1], columns = b_sizes[2];
  int64_t sizes[3] = {a_sizes[0], rows, columns}, strides[3] = {rows * columns, columns, 1};
  void *c;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      3, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, out));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &c));
  for (int64_t k = 0; k < a_sizes[0]; ++k)
    rl_matmul(rows, columns, a_sizes[2], a + k * a_strides[0], a_strides[1], a_strides[2], b + k * b_strides[0],
              b_strides[1], b_strides[2], (float *)c + k * strides[0]);
  return 0;
}
"""
_BATCHED = "AOTITorchError aoti_torch_cpu_matmul_batched(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle *);"

# A [M, K] times B [K, N] in float32 on the CPU; outside compiled programs this is torch.mm.
_library = torch.library.Library("rlcore", "DEF")
_library.define("matmul_small(Tensor a, Tensor b) -> Tensor")
_library.impl("matmul_small", torch.mm, "CPU")
torch.library.register_fake("rlcore::matmul_small", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), lib=_library)
# The same of each of B pairs: [B, M, K] times [B, K, N].
_library.define("matmul_batched(Tensor a, Tensor b) -> Tensor")
_library.impl("matmul_batched", torch.bmm, "CPU")
torch.library.register_fake(
    "rlcore::matmul_batched", lambda a, b: a.new_empty(a.shape[0], a.shape[1], b.shape[2]), lib=_library
)


def pays() -> bool:
    """Whether this processor is one that the kernel is for."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and sys.platform == "linux"


def shims_for(targets: set[Any]) -> dict[Any, list[str]]:
    """What inductor must be told to compile the kernel into a program, whose operations are `targets`; nothing where it
    has no such product, since the kernel takes the compiler seconds."""
    if not targets & {torch.ops.rlcore.matmul_small.default, torch.ops.rlcore.matmul_batched.default}:
        return {}
    both = _SHIM.replace("KERNEL", SOURCE).replace("BATCHED", _BATCHED)
    return {torch.ops.rlcore.matmul_small.default: [both], torch.ops.rlcore.matmul_batched.default: [_BATCHED]}
