"""The selective scan of Mamba (arXiv 2312.00752), several engines behind one function.

For each group (a direction of a block), channel and state n:

    h_t = exp(delta_t A_n) h_(t-1) + delta_t B_t,n u_t,   h_0 = 0
    y_t = sum_n C_t,n h_t,n + D u_t

`loop` says it step by step and is the truth of the tests. `torch` works in blocks with plain
operators and a backward pass of its own; `numba` is compiled for the CPU; `triton` for GPUs. All
multiply by decays that are at most 1 and never divide by them, so they are stable for every step
size; forms that cumulate decays are not (docs/decisions/0007).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.errors import InputError

Engine = Literal["auto", "loop", "torch", "numba", "triton"]
ENGINES = ("auto", "loop", "torch", "numba", "triton")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    engine: Engine = "auto",
) -> Tensor:
    """Scan the sequences of all groups in one call.

    Args:
        u: (b, k, d, L) input; k groups of d channels, L steps.
        delta: (b, k, d, L) step sizes; positive after bias and softplus.
        A: (k, d, N) negative decay rates.
        B: (b, k, N, L) input weights.
        C: (b, k, N, L) output weights.
        D: (k, d) weight of the input itself; none when None.
        delta_bias: (k, d) added to delta, before the softplus.
        delta_softplus: Whether softplus is applied to delta.
        engine: "auto" takes triton on a GPU, numba on the CPU where they are there, else torch.

    Returns:
        (b, k, d, L) in float32, or float64 where u is.

    Raises:
        InputError: Shapes that do not fit, or an engine that is not there.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (x.to(kind) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(kind)[..., None]
    if delta_softplus:
        delta = F.softplus(delta)
    with torch.autocast(u.device.type, enabled=False):
        y = _run(engine, u, delta, A, B, C)
        return y if D is None else y + D.to(kind)[..., None] * u


def _run(engine: Engine, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    if engine == "auto":
        engine = _choice(u)
    if engine == "loop":
        return scan_loop(u, delta, A, B, C)
    if engine == "torch":
        from rsfuse.ops.scan_torch import scan_torch

        return scan_torch(u, delta, A, B, C)
    if engine == "numba":
        from rsfuse.ops.scan_numba import scan_numba

        return scan_numba(u, delta, A, B, C)
    if engine == "triton":
        from rsfuse.ops.scan_triton import scan_triton

        return scan_triton(u, delta, A, B, C)
    raise InputError(
        f"scan engine {engine!r} is unknown",
        f"it is one of {', '.join(ENGINES)}",
        "use engine='auto'",
    )


def _choice(u: Tensor) -> Engine:
    """The fastest engine that is there."""
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
        return "torch"
    if u.device.type == "cuda":
        return "triton" if _importable("triton") and u.dtype == torch.float32 else "torch"
    return "numba" if u.device.type == "cpu" and _importable("numba") else "torch"


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def scan_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The definition, step by step; differentiable by autograd. Shapes as `selective_scan`."""
    b, k, d, length = u.shape
    h = u.new_zeros(b, k, d, A.shape[-1])
    out = []
    for t in range(length):
        step = delta[..., t, None]
        h = torch.exp(step * A) * h + step * B[:, :, None, :, t] * u[..., t, None]
        out.append((h * C[:, :, None, :, t]).sum(-1))
    return torch.stack(out, dim=-1)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    found: dict[str, Any] = {
        name: tuple(x.shape)
        for name, x in (
            ("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C), ("D", D),
            ("delta_bias", delta_bias),
        )
        if x is not None
    }  # fmt: skip
    if u.ndim == 4 and A.ndim == 3:
        b, k, d, length = u.shape
        states = A.shape[2]
        wanted = {
            "u": (b, k, d, length),
            "delta": (b, k, d, length),
            "A": (k, d, states),
            "B": (b, k, states, length),
            "C": (b, k, states, length),
            "D": (k, d),
            "delta_bias": (k, d),
        }
        if all(found[name] == wanted[name] for name in found) and u.numel():
            return
    raise InputError(
        f"shapes {found} do not make a scan",
        "needed are u, delta (b, k, d, L), A (k, d, N), B, C (b, k, N, L), D, delta_bias (k, d)",
        "check the order of the axes",
    )
