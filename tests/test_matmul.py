"""The kernel for matrix products, apart from the programs it is compiled into, and the rewriting that calls it."""

import ctypes
import os
import subprocess

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rlcore.programs import matmul, passes

SOURCE = """
extern "C" {
HEADER
void product(long M, long N, long K, const float *a, long a_row, long a_column, const float *b, long b_row,
             long b_column, float *c) {
  rl_matmul(M, N, K, a, a_row, a_column, b, b_row, b_column, c);
}
}
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """The kernel as a function of float32 arrays with any strides."""
    compiler = os.environ.get("CXX", "g++")  # which the tests of programs need too
    folder = tmp_path_factory.mktemp("matmul")
    (folder / "product.cpp").write_text(SOURCE.replace("HEADER", matmul.SOURCE))
    # The flags under which inductor compiles it: nothing but its own attributes asks for speed or fused products.
    flags = ["-O1", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "product.cpp", "-o", "product.so"], cwd=folder, check=True)
    function = ctypes.CDLL(str(folder / "product.so")).product

    def call(a, b):
        c = np.full((a.shape[0], b.shape[1]), np.nan, dtype=np.float32)
        numbers = [ctypes.c_long(x) for x in (*c.shape, a.shape[1])]
        strides = [[ctypes.c_long(s // 4) for s in x.strides] for x in (a, b)]
        pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (a, b, c)]
        function(*numbers, pointers[0], *strides[0], pointers[1], *strides[1], pointers[2])
        return c

    return call


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="the processor fuses no products")
def test_products_and_sums_are_fused(product):
    """x · x − (x · x, rounded) is what rounding took, and 0 where the product is rounded before it is added."""
    x = np.float32(1) + np.float32(2**-12)
    a = np.tile(np.array([[1, x]], dtype=np.float32), (16, 1))
    b = np.tile(np.array([[-(x * x)], [x]], dtype=np.float32), (1, 64))
    exact = float(x) * float(x) - float(x * x)
    assert exact != 0 and (product(a, b) == np.float32(exact)).all()


# Below, at and above the tile (8 × 32 of C), one vector (16), the depth of a panel (256), and the work for threads.
SHAPES = [
    (1, 1, 1), (8, 32, 4), (7, 31, 3), (9, 33, 5), (128, 64, 64), (128, 2, 64), (64, 4, 128), (2, 64, 128),
    (16, 16, 256), (17, 48, 257), (3, 80, 600), (300, 64, 256), (5, 7, 0),
]  # fmt: skip


@pytest.mark.parametrize("transposed", ["neither", "left", "right", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_gives_the_product(product, shape, transposed):
    M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    a, b = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    if transposed in ("left", "both"):
        a = np.asfortranarray(a)
    if transposed in ("right", "both"):
        b = np.asfortranarray(b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(product(a, b), exact, rtol=0, atol=3e-7 * max(K, 1))


def test_the_kernel_takes_parts_of_larger_matrices(product):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 50), dtype=np.float32), rng.standard_normal((50, 70), dtype=np.float32)
    np.testing.assert_allclose(product(a[3:20, 1:40], b[2:41, 5:64]), a[3:20, 1:40] @ b[2:41, 5:64], atol=2e-5)


def test_recorded_products_are_replaced_and_stay_equal(monkeypatch):
    monkeypatch.setattr(matmul, "pays", lambda: True)

    def layers(x, weight, bias):
        return torch.tanh(torch.addmm(bias, x, weight)) @ weight.t()

    inputs = [torch.randn(*size, generator=torch.Generator().manual_seed(0)) for size in ((20, 6), (6, 5), (5,))]
    recorded = passes.for_compiler(make_fx(layers)(*inputs))
    targets = [node.target for node in recorded.graph.nodes]
    assert targets.count(torch.ops.rlcore.matmul_small.default) == 2
    assert not {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.tanh.default} & set(targets)
    torch.testing.assert_close(recorded(*inputs), layers(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pays", [True, False])
def test_other_products_are_left_to_torch(monkeypatch, pays):
    """Float64 in any case, and all on processors that the kernel is not for."""
    monkeypatch.setattr(matmul, "pays", lambda: pays)
    dtype = torch.float64 if pays else torch.float32
    recorded = passes.for_compiler(make_fx(torch.mm)(torch.ones(20, 3, dtype=dtype), torch.ones(3, 4, dtype=dtype)))
    assert torch.ops.aten.mm.default in [node.target for node in recorded.graph.nodes]
