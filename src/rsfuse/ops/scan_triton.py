"""The selective scan on GPUs, in Triton: no compiler on the user's machine, imported when used.

One program walks through time for one group and a block of channels, the states in registers; that
suits the many short sequences of image windows better than a scan that is parallel over time. The
backward pass keeps the states every few steps and computes the others again in reverse order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsfuse.errors import InputError

# Channels of a program, and steps between kept states.
_CHANNELS = 32
_EVERY = 16


@triton.jit
def _forward(
    u, delta, rates, B, C, y, starts, length, channels, kinds, blocks,
    N: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, EVERY: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """u, delta, y (G, L, d); rates (k, N, d) times log2 e; B, C (G, L, N); starts (G, nb, N, d)."""
    g = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    inside, real = c < channels, n < N
    both = real[:, None] & inside[None, :]
    kind = g % kinds
    rate = tl.load(rates + (kind * N + n[:, None]) * channels + c[None, :], mask=both, other=0.0)
    h = tl.zeros((STATES, WIDTH), tl.float32)
    for t in range(0, length):
        if KEEP:  # noqa: SIM102  (the first is decided when the kernel is compiled)
            if t % EVERY == 0:
                place = ((g * blocks + t // EVERY) * N + n[:, None]) * channels + c[None, :]
                tl.store(starts + place, h, mask=both)
        at = (g * length + t) * channels + c
        step = tl.load(delta + at, mask=inside, other=0.0)
        x = tl.load(u + at, mask=inside, other=0.0)
        b = tl.load(B + (g * length + t) * N + n, mask=real, other=0.0)
        out = tl.load(C + (g * length + t) * N + n, mask=real, other=0.0)
        h = tl.exp2(step[None, :] * rate) * h + (step * x)[None, :] * b[:, None]
        tl.store(y + at, tl.sum(h * out[:, None], 0), mask=inside)


@triton.jit
def _backward(
    u, delta, rates, B, C, dy, starts, states, du, ddelta, drates, dB, dC, length, channels, kinds,
    blocks, parts,
    N: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """As `_forward`; states (G, parts, EVERY, N, WIDTH) is room; dB, dC (parts, G, L, N)."""
    g = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    c = part * WIDTH + lane
    n = tl.arange(0, STATES)
    inside, real = c < channels, n < N
    both = real[:, None] & inside[None, :]
    kind = g % kinds
    rate = tl.load(rates + (kind * N + n[:, None]) * channels + c[None, :], mask=both, other=0.0)
    carry = tl.zeros((STATES, WIDTH), tl.float32)
    slope = tl.zeros((STATES, WIDTH), tl.float32)
    room = states + (g * parts + part) * EVERY * N * WIDTH
    own = n[:, None] * WIDTH + lane[None, :]
    for back in range(0, blocks):
        block = blocks - 1 - back
        first = block * EVERY
        place = ((g * blocks + block) * N + n[:, None]) * channels + c[None, :]
        h = tl.load(starts + place, mask=both, other=0.0)
        for i in range(0, EVERY):
            t = first + i
            if t < length:
                tl.store(room + i * N * WIDTH + own, h, mask=real[:, None])
                at = (g * length + t) * channels + c
                step = tl.load(delta + at, mask=inside, other=0.0)
                x = tl.load(u + at, mask=inside, other=0.0)
                b = tl.load(B + (g * length + t) * N + n, mask=real, other=0.0)
                h = tl.exp2(step[None, :] * rate) * h + (step * x)[None, :] * b[:, None]
        tl.debug_barrier()
        for j in range(0, EVERY):
            i = EVERY - 1 - j
            t = first + i
            if t < length:
                before = tl.load(room + i * N * WIDTH + own, mask=real[:, None], other=0.0)
                at = (g * length + t) * channels + c
                step = tl.load(delta + at, mask=inside, other=0.0)
                x = tl.load(u + at, mask=inside, other=0.0)
                grad = tl.load(dy + at, mask=inside, other=0.0)
                b = tl.load(B + (g * length + t) * N + n, mask=real, other=0.0)
                out = tl.load(C + (g * length + t) * N + n, mask=real, other=0.0)
                fade = tl.exp2(step[None, :] * rate)
                after = fade * before + (step * x)[None, :] * b[:, None]
                total = carry + grad[None, :] * out[:, None]
                row = ((part * tl.num_programs(0) + g) * length + t) * N + n
                tl.store(dC + row, tl.sum(grad[None, :] * after, 1), mask=real)
                tl.store(dB + row, tl.sum(total * (step * x)[None, :], 1), mask=real)
                along = tl.sum(total * b[:, None], 0)
                carry = total * fade
                weight = carry * before
                slope += weight * step[None, :]
                faded = tl.sum(weight * rate, 0) * 0.6931471805599453
                tl.store(du + at, along * step, mask=inside)
                tl.store(ddelta + at, along * x + faded, mask=inside)
        tl.debug_barrier()
    tl.store(drates + (g * N + n[:, None]) * channels + c[None, :], slope, mask=both)


class _Scan(torch.autograd.Function):
    """u, delta (G, L, d), rates (k, N, d), B, C (G, L, N) -> y (G, L, d)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor) -> Tensor:
        groups, length, channels = u.shape
        kinds, states = rates.shape[:2]
        keep = any(ctx.needs_input_grad)
        blocks = triton.cdiv(length, _EVERY)
        starts = u.new_empty((groups, blocks, states, channels) if keep else (1,))
        y = torch.empty_like(u)
        scaled = (rates * 1.4426950408889634).contiguous()
        grid = (groups, triton.cdiv(channels, _CHANNELS))
        _forward[grid](
            u, delta, scaled, B, C, y, starts, length, channels, kinds, blocks,
            N=states, STATES=triton.next_power_of_2(states), WIDTH=_CHANNELS, EVERY=_EVERY,
            KEEP=keep, num_warps=1,
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(u, delta, scaled, B, C, starts)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, scaled, B, C, starts = ctx.saved_tensors
        groups, length, channels = u.shape
        kinds, states = scaled.shape[:2]
        parts = triton.cdiv(channels, _CHANNELS)
        blocks = triton.cdiv(length, _EVERY)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        drates = u.new_zeros(groups, states, channels)
        dB, dC = (u.new_zeros(parts, groups, length, states) for _ in range(2))
        room = u.new_empty(groups, parts, _EVERY, states, _CHANNELS)
        _backward[(groups, parts)](
            u, delta, scaled, B, C, grads[0].contiguous(), starts, room, du, ddelta, drates, dB,
            dC, length, channels, kinds, blocks, parts,
            N=states, STATES=triton.next_power_of_2(states), WIDTH=_CHANNELS, EVERY=_EVERY,
            num_warps=1,
        )  # fmt: skip
        return du, ddelta, drates.view(-1, kinds, states, channels).sum(0), dB.sum(0), dC.sum(0)


def scan_triton(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Shapes as `rsfuse.ops.scan.selective_scan`, delta ready to use; float32 only."""
    if u.dtype != torch.float32:
        raise InputError(
            f"the triton engine was asked for a scan in {u.dtype}",
            "it computes in float32",
            "use engine='torch' for double precision on a GPU",
        )
    b, k, d, length = u.shape

    def steps_outside(x: Tensor) -> Tensor:  # (b, k, c, L) -> (G, L, c)
        return x.reshape(b * k, x.shape[2], length).transpose(1, 2).contiguous()

    y: Tensor = _Scan.apply(
        steps_outside(u), steps_outside(delta), A.transpose(1, 2).contiguous(), steps_outside(B),
        steps_outside(C),
    )  # fmt: skip
    return y.transpose(1, 2).reshape(b, k, d, length)
