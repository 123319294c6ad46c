"""Recurrent layers for programs: a loop over the rows of a sequence, and one over their gradients, in which each turn
does only what depends on the turn before. All else is computed for all rows at once, in front or behind.

    GRU    r = σ(x_r + h_r)   z = σ(x_z + h_z)   n = tanh(x_n + r h_n)   h' = (1 − z) n + z h
    LSTM   i, f, o = σ(x + h)   g = tanh(x_g + h_g)   c' = f c + i g   h' = o tanh c'

with x = W_x x + b_x and h = W_h h + b_h, in torch's order of gates (Cho et al. 2014; Hochreiter & Schmidhuber 1997).
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rlcore.programs.recurrent import is_there
from rlcore.tracing import is_recording, loop, recording, thread


def scan_gru(x: Tensor, h: Tensor, first: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """What torch's GRU puts out for `x [L, S, F]` and `h [S, H]`, `[L, S, H]`, forgetting where `first [L, S]`; its
    weights are `w_x [3 H, F]`, `w_h [3 H, H]`, `b_x [3 H]` and `b_h [3 H]`."""
    return _GRU.apply(F.linear(x, w_x, b_x), h, first, w_h, b_h)


def scan_lstm(
    x: Tensor, h: Tensor, c: Tensor, first: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor
) -> Tensor:
    """The same of torch's LSTM for `x [L, S, F]`, `h [S, H]` and cells `c [S, H]`, forgetting where `first [L, S]`; its
    weights are `w_x [4 H, F]`, `w_h [4 H, H]`, `b_x [4 H]` and `b_h [4 H]`."""
    return _LSTM.apply(F.linear(x, w_x, b_x + b_h), h, c, first, w_h)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, first: Tensor, w: Tensor, b: Tensor) -> Tensor:
        before, gates, after = (torch.ops.rlcore.gru_rows if is_there(x) else _gru_rows)(x, h, first, w, b)
        ctx.kept, ctx.recorder = (gates, before, first, w), thread.recorder
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        _, before, _, w = ctx.kept
        with _as_before(ctx):
            into = (torch.ops.rlcore.gru_slopes if is_there(w) else _gru_slopes)(slope, *ctx.kept)
        into_r, into_z, into_n, into_h_n = into.chunk(4, -1)
        into_h = torch.cat([into_r, into_z, into_h_n], -1).flatten(0, 1)
        into_x = torch.cat([into_r, into_z, into_n], -1)
        return into_x, None, None, into_h.T @ before.flatten(0, 1), into_h.sum(0)


def _gru_rows(x: Tensor, h: Tensor, first: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States `[L, S, H]` before each row, its gates r, z, n and h_n `[L, S, 4 H]`, and states after it."""
    size = h.shape[-1]

    def turn(h: Tensor, row: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = h.masked_fill(row["first"], 0.0)
        both, h_n = F.linear(h, w, b).split((2 * size, size), -1)
        both = (row["rz"] + both).sigmoid()
        r, z = both.chunk(2, -1)
        n = torch.addcmul(row["n"], r, h_n).tanh()
        after = n.lerp(h, z)
        return after, {"before": h, "gates": torch.cat([both, n, h_n], -1), "after": after}

    rows = {"rz": x[..., : 2 * size], "n": x[..., 2 * size :], "first": first.unsqueeze(-1)}
    _, rows, _ = loop(turn, h, rows, unroll=_turns(x))
    return rows["before"], rows["gates"], rows["after"]


def _gru_slopes(slope: Tensor, gates: Tensor, before: Tensor, first: Tensor, w: Tensor) -> Tensor:
    """∂ by what goes into r, z, and n, and by h_n, of each row, `[L, S, 4 H]`."""
    r, z, n, h_n = gates.chunk(4, -1)
    d_n = (1 - z) * (1 - n * n)
    # Of each row, per ∂ by the state after it.
    each = torch.cat([d_n * h_n * r * (1 - r), (before - n) * z * (1 - z), d_n * r], -1)
    kept = (~first).to(z.dtype).unsqueeze(-1)

    def turn(carry: Tensor, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        total = carry + row["slope"]
        through = torch.cat([total, total, total], -1) * row["each"]
        return torch.addmm(total * row["stays"], through, w), total

    total = _backwards(turn, torch.zeros_like(slope[0]), {"slope": slope, "each": each * kept, "stays": z * kept})
    d_r, d_z, d_h_n = each.chunk(3, -1)
    return torch.cat([total * d_r, total * d_z, total * d_n, total * d_h_n], -1)


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, first: Tensor, w: Tensor) -> Tensor:
        h, c, gates, after = (torch.ops.rlcore.lstm_rows if is_there(x) else _lstm_rows)(x, h, c, first, w)
        ctx.kept, ctx.states, ctx.recorder = (gates, c, first, w), h, thread.recorder
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        with _as_before(ctx):
            into = (torch.ops.rlcore.lstm_slopes if is_there(slope) else _lstm_slopes)(slope, *ctx.kept)
        return into, None, None, None, into.flatten(0, 1).T @ ctx.states.flatten(0, 1)


def _lstm_rows(x: Tensor, h: Tensor, c: Tensor, first: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and cells `[L, S, H]` before each row, its gates i, f, g, o `[L, S, 4 H]`, and states after it."""
    sizes = 2 * h.shape[-1], h.shape[-1], h.shape[-1]

    def turn(carry: dict[str, Tensor], row: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        h, c = (carry[name].masked_fill(row["first"], 0.0) for name in "hc")
        both, g, o = (row["x"] + F.linear(h, w)).split(sizes, -1)
        both, g, o = both.sigmoid(), g.tanh(), o.sigmoid()
        i, f = both.chunk(2, -1)
        after = torch.addcmul(f * c, i, g)
        out = o * after.tanh()
        return {"h": out, "c": after}, {"h": h, "c": c, "gates": torch.cat([both, g, o], -1), "out": out}

    _, rows, _ = loop(turn, {"h": h, "c": c}, {"x": x, "first": first.unsqueeze(-1)}, unroll=_turns(x))
    return rows["h"], rows["c"], rows["gates"], rows["out"]


def _lstm_slopes(slope: Tensor, gates: Tensor, before: Tensor, first: Tensor, w: Tensor) -> Tensor:
    """∂ by what goes into i, f, g and o of each row, `[L, S, 4 H]`."""
    i, f, g, o = gates.chunk(4, -1)
    tanh = torch.addcmul(f * before, i, g).tanh()
    kept = (~first).to(o.dtype).unsqueeze(-1)
    rows = {
        "slope": slope, "kept": kept, "stays": f * kept, "o": tanh * o * (1 - o), "c": o * (1 - tanh * tanh),
        "each": torch.cat([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], -1),
    }  # fmt: skip

    def turn(carry: dict[str, Tensor], row: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        into_h = carry["h"] + row["slope"]
        into_c = torch.addcmul(carry["c"], into_h, row["c"])
        through = torch.cat([torch.cat([into_c, into_c, into_c], -1) * row["each"], into_h * row["o"]], -1)
        return {"h": (through @ w) * row["kept"], "c": into_c * row["stays"]}, through

    zeros = torch.zeros_like(slope[0])
    return _backwards(turn, {"h": zeros, "c": zeros.clone()}, rows)


def _as_before(ctx: Any) -> Any:
    """Autograd may call from another thread, which would not know that it is being recorded."""
    return recording(ctx.recorder) if ctx.recorder and not is_recording() else nullcontext()


def _backwards(turn: Any, carry: Any, rows: dict[str, Tensor]) -> Tensor:
    """A loop from the last row to the first; its ys in the order of rows."""
    _, ys, _ = loop(turn, carry, {name: x.flip(0) for name, x in rows.items()}, unroll=_turns(rows["slope"]))
    return ys.flip(0)


def _turns(x: Tensor) -> int:
    """Turns of a compiled loop to write out one after the other: few numbers cost less than the turn itself."""
    return 4 if x.shape[1] <= 64 else 1
