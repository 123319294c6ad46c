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
        size = h.shape[-1]

        def turn(h: Tensor, row: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            h = h.masked_fill(row["first"], 0.0)
            both, h_n = F.linear(h, w, b).split((2 * size, size), -1)
            r, z = (row["rz"] + both).sigmoid().chunk(2, -1)
            after = torch.addcmul(row["n"], r, h_n).tanh().lerp(h, z)
            return after, {"before": h, "after": after}

        rows = {"rz": x[..., : 2 * size], "n": x[..., 2 * size :], "first": first.unsqueeze(-1)}
        _, rows, _ = loop(turn, h, rows, unroll=_turns(x))
        ctx.kept, ctx.recorder = (x, rows["before"], first, w, b), thread.recorder
        return rows["after"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, before, first, w, b = ctx.kept
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = F.linear(before, w, b).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = torch.addcmul(x_n, r, h_n).tanh()
        d_n = (1 - z) * (1 - n * n)
        d_z, d_r = (before - n) * z * (1 - z), d_n * h_n * r * (1 - r)
        kept = (~first).to(x.dtype).unsqueeze(-1)
        # Rows of what goes through the gates and what stays, 0 where an episode begins.
        rows = {"slope": slope, "gates": torch.stack([d_r, d_z, d_n * r], -2) * kept.unsqueeze(-1), "stays": z * kept}

        def turn(carry: Tensor, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            total = carry + row["slope"]
            through = (total.unsqueeze(1) * row["gates"]).flatten(1)
            return torch.addmm(total * row["stays"], through, w), total

        total = _backwards(ctx, turn, torch.zeros_like(slope[0]), rows)
        into_x = torch.cat([total * d_r, total * d_z, total * d_n], -1)
        into_h = torch.cat([into_x[..., : 2 * r.shape[-1]], total * d_n * r], -1).flatten(0, 1)
        return into_x, None, None, into_h.T @ before.flatten(0, 1), into_h.sum(0)


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, first: Tensor, w: Tensor) -> Tensor:
        size = h.shape[-1]

        def turn(carry: dict[str, Tensor], row: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            h, c = (carry[name].masked_fill(row["first"], 0.0) for name in "hc")
            i, f, g, o = _lstm_gates(row["x"] + F.linear(h, w), size)
            after = torch.addcmul(f * c, i, g)
            out = o * after.tanh()
            return {"h": out, "c": after}, {"h": h, "c": c, "out": out}

        rows = {"x": x, "first": first.unsqueeze(-1)}
        _, rows, _ = loop(turn, {"h": h, "c": c}, rows, unroll=_turns(x))
        ctx.kept, ctx.recorder = (x, rows["h"], rows["c"], first, w), thread.recorder
        return rows["out"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, h, c, first, w = ctx.kept
        i, f, g, o = _lstm_gates(x + F.linear(h, w), h.shape[-1])
        tanh = torch.addcmul(f * c, i, g).tanh()
        kept = (~first).to(x.dtype).unsqueeze(-1)
        rows = {
            "slope": slope, "kept": kept, "stays": f * kept, "o": tanh * o * (1 - o), "c": o * (1 - tanh * tanh),
            "gates": torch.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g * g)], -2),
        }  # fmt: skip

        def turn(carry: dict[str, Tensor], row: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
            into_h = carry["h"] + row["slope"]
            into_c = torch.addcmul(carry["c"], into_h, row["c"])
            gates = (into_c.unsqueeze(1) * row["gates"]).flatten(1)
            through = torch.cat([gates, into_h * row["o"]], -1)
            return {"h": (through @ w) * row["kept"], "c": into_c * row["stays"]}, through

        zeros = torch.zeros_like(slope[0])
        into_x = _backwards(ctx, turn, {"h": zeros, "c": zeros.clone()}, rows)
        return into_x, None, None, None, into_x.flatten(0, 1).T @ h.flatten(0, 1)


def _lstm_gates(gates: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g and o from `gates [..., 4 H]`, in the order in which torch stores them."""
    both, g, o = gates.split((2 * size, size, size), -1)
    i, f = both.sigmoid().chunk(2, -1)
    return i, f, g.tanh(), o.sigmoid()


def _backwards(ctx: Any, turn: Any, carry: Any, rows: dict[str, Tensor]) -> Tensor:
    """A loop from the last row to the first; its ys in the order of rows. Autograd may call from another thread, which
    would not know that it is being recorded."""
    with recording(ctx.recorder) if not is_recording() and ctx.recorder else nullcontext():
        _, ys, _ = loop(turn, carry, {name: x.flip(0) for name, x in rows.items()}, unroll=_turns(rows["slope"]))
    return ys.flip(0)


def _turns(x: Tensor) -> int:
    """Turns of a compiled loop to write out one after the other: few numbers cost less than the turn itself."""
    return 4 if x.shape[1] <= 64 else 1
