"""Local correlation: how alike two feature maps are at every small displacement, block by block.

For features f0 and f1 (B, C, H, W), a radius r, a stride s and a block of m samples a side,

    out[b, d, Y, X] = sum over the samples (y, x) of block (Y, X) and over c of
                      f0[b, c, y, x] * f1[b, c, y + dy, x + dx],     d = (dy, dx) in [-r, r]^2,

where samples lie s pixels apart and f1 is 0 outside. Sums over blocks add up to sums over templates
of any size and place, so one pass serves every template. `block_correlation` takes a numba kernel
on the CPU, with its own backward pass, and the plain loop elsewhere; both are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

FloatArray = npt.NDArray[np.float32]


def block_correlation(f0: Tensor, f1: Tensor, *, radius: int, stride: int, block: int) -> Tensor:
    """Block sums of the products of f0 and displaced f1.

    Args:
        f0: (B, C, H, W), H and W multiples of stride * block.
        f1: (B, C, H, W).
        radius: r, largest displacement in pixels.
        stride: s, pixels between samples.
        block: m, samples along the side of a block.

    Returns:
        (B, (2r + 1)^2, H / (s m), W / (s m)); displacements row by row, dy first.
    """
    if f0.device.type == "cpu" and f0.dtype == torch.float32:
        out: Tensor = _BlockCorrelation.apply(f0, f1, radius, stride, block)
        return out
    return plain_block_correlation(f0, f1, radius=radius, stride=stride, block=block)


def plain_block_correlation(
    f0: Tensor, f1: Tensor, *, radius: int, stride: int, block: int
) -> Tensor:
    """`block_correlation` by its definition: one product per displacement."""
    own = f0[:, :, ::stride, ::stride]
    wide = F.pad(f1, (radius, radius, radius, radius))
    height, width = f0.shape[-2:]
    maps = []
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            moved = wide[:, :, dy : dy + height : stride, dx : dx + width : stride]
            maps.append((own * moved).sum(dim=1))
    return F.avg_pool2d(torch.stack(maps, dim=1), block) * float(block * block)


class _BlockCorrelation(torch.autograd.Function):
    """The kernels below behind autograd."""

    @staticmethod
    def forward(ctx: Any, f0: Tensor, f1: Tensor, radius: int, stride: int, block: int) -> Tensor:
        own, phases = _sampled(f0, f1, radius, stride)
        ctx.save_for_backward(f0, f1)
        ctx.sizes = (radius, stride, block)
        b, _, h, w = own.shape
        side = 2 * radius + 1
        out = np.zeros((b, side * side, h // block, w // block), np.float32)
        _share(_correlate, (own, phases, out, radius, stride, block), b * (h // block))
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        f0, f1 = ctx.saved_tensors
        radius, stride, block = ctx.sizes
        own, phases = _sampled(f0, f1, radius, stride)
        grad_own, grad_phases = np.zeros_like(own), np.zeros_like(phases)
        arrays = (own, phases, grad.contiguous().numpy(), grad_own, grad_phases)
        _share(_correlate_backward, (*arrays, radius, stride, block), len(own))
        grad0 = torch.zeros_like(f0, memory_format=torch.contiguous_format)
        grad0[:, :, ::stride, ::stride] = torch.from_numpy(grad_own)
        b, c, height, width = f1.shape
        wide = torch.from_numpy(grad_phases).permute(2, 3, 4, 0, 5, 1)
        wide = wide.reshape(b, c, stride * phases.shape[4], stride * phases.shape[5])
        grad1 = wide[:, :, radius : radius + height, radius : radius + width]
        return grad0, grad1.contiguous(), None, None, None


def _share(kernel: Callable[..., None], arguments: tuple[Any, ...], tasks: int) -> None:
    """Run a kernel on its tasks in threads of our own, as many as PyTorch uses (decision 0016)."""
    threads = max(1, min(torch.get_num_threads(), tasks))
    edges = [tasks * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*arguments, 0, tasks)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: kernel(*arguments, *part), pairwise(edges)))


def _sampled(f0: Tensor, f1: Tensor, radius: int, stride: int) -> tuple[FloatArray, FloatArray]:
    """f0 at the samples, and f1 padded and split into its phases (s, s, B, C, h', w')."""
    own = f0.detach()[:, :, ::stride, ::stride].contiguous().numpy()
    b, c, height, width = f1.shape
    extra = [-(size + 2 * radius) % stride for size in (width, height)]
    wide = F.pad(f1.detach(), (radius, radius + extra[0], radius, radius + extra[1]))
    h, w = wide.shape[-2] // stride, wide.shape[-1] // stride
    phases = wide.reshape(b, c, h, stride, w, stride).permute(3, 5, 0, 1, 2, 4).contiguous()
    return own, phases.numpy()


@numba.njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _correlate(
    own: FloatArray,
    phases: FloatArray,
    out: FloatArray,
    radius: int,
    stride: int,
    block: int,
    first: int,
    last: int,
) -> None:
    _, channels, height, width = own.shape
    side, rows = 2 * radius + 1, height // block
    for task in range(first, last):
        b, row = task // rows, task % rows
        line = np.empty(width, np.float32)
        for y in range(row * block, (row + 1) * block):
            for dy in range(side):
                for dx in range(side):
                    oy, ox = y + dy // stride, dx // stride
                    line[:] = 0.0
                    for c in range(channels):
                        left = own[b, c, y]
                        right = phases[dy % stride, dx % stride, b, c, oy]
                        for x in range(width):
                            line[x] += left[x] * right[x + ox]
                    target = out[b, dy * side + dx, row]
                    for x in range(width):
                        target[x // block] += line[x]


@numba.njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _correlate_backward(
    own: FloatArray,
    phases: FloatArray,
    grad: FloatArray,
    grad_own: FloatArray,
    grad_phases: FloatArray,
    radius: int,
    stride: int,
    block: int,
    first: int,
    last: int,
) -> None:
    _, channels, height, width = own.shape
    side = 2 * radius + 1
    for b in range(first, last):
        line = np.empty(width, np.float32)
        for y in range(height):
            for dy in range(side):
                for dx in range(side):
                    oy, ox = y + dy // stride, dx // stride
                    source = grad[b, dy * side + dx, y // block]
                    for x in range(width):
                        line[x] = source[x // block]
                    for c in range(channels):
                        left, right = own[b, c, y], phases[dy % stride, dx % stride, b, c, oy]
                        to_left = grad_own[b, c, y]
                        to_right = grad_phases[dy % stride, dx % stride, b, c, oy]
                        for x in range(width):
                            to_left[x] += line[x] * right[x + ox]
                            to_right[x + ox] += line[x] * left[x]
