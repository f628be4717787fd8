"""The selective scan: all engines side by side in one run, with memory and the arithmetic floor.

    python benchmarks/scan.py            the published sizes, one thread
    python benchmarks/scan.py --quick    a fraction of them

`public` is the loop of the reference implementations (one einsum per step over a tensor of all
decays), and `pscan` a Blelloch scan over pairs as mamba.py does it; both are written here from
their description. The floor is the time of the vector instructions alone, at the rate of a matrix
product measured in the same run.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.ops.scan import selective_scan


def inputs(b: int, length: int, d: int, n: int) -> list[Tensor]:
    """u, delta, A, B, C of one group."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    delta = F.softplus(normal(b, 1, d, length) - 4.0)
    rates = -torch.arange(1.0, n + 1).expand(1, d, n).contiguous()
    return [normal(b, 1, d, length), delta, rates, normal(b, 1, n, length), normal(b, 1, n, length)]


def public(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """One einsum per step, decays of all steps held at once."""
    u, delta, B, C = u[:, 0], delta[:, 0], B[:, 0], C[:, 0]
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A[0]))
    pushed = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = u.new_zeros(*u.shape[:2], A.shape[2])
    out = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + pushed[:, :, t]
        out.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(out, dim=2)[:, None]


class PairScan(torch.autograd.Function):
    """h_t = a_t h_(t-1) + x_t over (B, D, L, N) by a work-efficient scan over pairs, L = 2^k."""

    @staticmethod
    def forward(ctx, a, x):  # type: ignore[no-untyped-def]
        """States of all steps."""
        decay, h = a.clone(), x.clone()
        _blelloch(decay, h)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """The same scan backwards in time."""
        a, h = ctx.saved_tensors
        later = torch.cat([a[:, :, 1:], torch.zeros_like(a[:, :, :1])], dim=2).flip(2)
        g = grad.flip(2).clone()
        _blelloch(later.clone(), g)
        g = g.flip(2)
        before = torch.cat([torch.zeros_like(h[:, :, :1]), h[:, :, :-1]], dim=2)
        return g * before, g


def _blelloch(a: Tensor, x: Tensor) -> None:
    length = x.shape[2]
    step = 1
    while step < length:
        right = slice(2 * step - 1, None, 2 * step)
        left = slice(step - 1, None, 2 * step)
        x[:, :, right] += a[:, :, right] * x[:, :, left]
        a[:, :, right] *= a[:, :, left]
        step *= 2
    step //= 2
    while step >= 1:
        right = slice(3 * step - 1, None, 2 * step)
        count = x[:, :, right].shape[2]
        if count:
            left = slice(2 * step - 1, None, 2 * step)
            x[:, :, right] += a[:, :, right] * x[:, :, left][:, :, :count]
            a[:, :, right] *= a[:, :, left][:, :, :count]
        step //= 2


def pscan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan over pairs."""
    u, delta, B, C = (x[:, 0].transpose(1, 2) for x in (u, delta, B, C))
    decay = torch.exp(delta.unsqueeze(-1) * A[0]).transpose(1, 2)
    pushed = ((delta * u).unsqueeze(-1) * B.unsqueeze(2)).transpose(1, 2)
    h = PairScan.apply(decay.contiguous(), pushed.contiguous())
    return torch.einsum("bdln,bln->bdl", h, C)[:, None]


ENGINES: dict[str, Callable[..., Tensor]] = {
    "public": public,
    "pscan": pscan,
    "torch": lambda *x: selective_scan(*x, engine="torch"),
    "numba": lambda *x: selective_scan(*x, engine="numba"),
}


def forward(name: str, given: list[Tensor]) -> None:
    """One forward pass."""
    with torch.no_grad():
        ENGINES[name](*given)


def both(name: str, given: list[Tensor]) -> None:
    """One forward and backward pass."""
    fresh = [x.clone().requires_grad_() for x in given]
    ENGINES[name](*fresh).sum().backward()


def best(run: Callable[[], None], seconds: float) -> float:
    """The shortest of the repetitions that fit into the time, at least two after a first."""
    run()
    least, started, count = float("inf"), time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - begun)
        count += 1
    return least


def floor_rate() -> float:
    """Multiply-adds per second of this thread, by a matrix product."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    out = torch.empty(512, 512)

    def product() -> None:
        torch.mm(a, b, out=out)

    return 512**3 / best(product, 0.5)


def memory_mb(name: str, what: str, size: tuple[int, ...]) -> float:
    """Extra peak memory of one pass, measured in a process of its own."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import scan
torch.set_num_threads(1)
scan.{what}({name!r}, scan.inputs(1, 8, {size[2]}, {size[3]}))
given = scan.inputs(*{size})
def kilobytes(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
scan.{what}({name!r}, given)
print(kilobytes("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="per engine and pass")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(8, 64, 64, 16)] if options.quick else [(64, 256, 128, 16), (64, 256, 64, 24)]
    rate = floor_rate()
    print(f"one thread of torch {torch.__version__}; matrix product {rate / 1e9:.0f} G MAC/s")
    for size in sizes:
        compare(size, rate, options.seconds, quick=options.quick)


HEADINGS = ("engine", "fwd ms", "f+b ms", "public/fwd", "public/f+b", "floors fwd", "floors f+b",
            "MB fwd", "MB f+b")  # fmt: skip


def compare(size: tuple[int, int, int, int], rate: float, seconds: float, *, quick: bool) -> None:
    """Print the table of one size."""
    b, length, d, n = size
    given = inputs(*size)
    elements = b * length * d * n
    # 15 vector instructions per element forward, 37 both ways.
    floors = (15 * elements / rate, 37 * elements / rate)
    print(f"\nB {b}, L {length}, D {d}, N {n}: {elements / 1e6:.1f} M elements")
    print(" ".join(f"{heading:>10}" for heading in HEADINGS))
    times: dict[str, tuple[float, float]] = {}
    for name in ENGINES:
        one = best(partial(forward, name, given), seconds)
        if name == "public" and not quick:
            # Indexing makes its backward quadratic in time: an eighth of the batch stands in.
            few = [x[: b // 8] if x.ndim == 4 else x for x in given]
            begun = time.perf_counter()
            both(name, few)
            two = 8 * (time.perf_counter() - begun)
        else:
            two = best(partial(both, name, given), seconds)
        times[name] = one, two
        ratios = [times["public"][i] / times[name][i] for i in (0, 1)]
        apart = [times[name][i] / floors[i] for i in (0, 1)]
        used = [memory_mb(name, what, size) for what in ("forward", "both")]
        cells = [1e3 * one, 1e3 * two, *ratios, *apart, *used]
        print(f"{name:>10} " + " ".join(f"{cell:10.1f}" for cell in cells))


if __name__ == "__main__":
    main()
