"""The selective scan compiled for the CPU by numba: one pass over time, channels side by side.

The states of a group lie in the fastest cache; the exponential is a polynomial that vectorises. The
backward pass keeps the states every few steps and computes the others again (recomputation, as the
authors' GPU kernel). Groups are shared among as many threads as PyTorch uses; the kernels hold no
lock of the interpreter and may run in several scans at once. Denormal numbers, into which states
decay on flat input, count as zero in these threads: they would cost ten times the time.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

# Steps between kept states when a gradient is wanted.
_KEPT_EVERY = 16

_LOG2E = 1.4426950408889634


@njit(inline="always")
def _exp2_single(x: Any) -> Any:
    """2^x for x <= 0 in float32, relative error 1e-7; below 2^-126 it stays there."""
    x = max(x, np.float32(-126.0))
    whole = np.floor(x)
    f = x - whole
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    bits = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32)


@njit(inline="always")
def _exp2_double(x: Any) -> Any:
    """2^x in float64."""
    return np.exp(x * 0.6931471805599453)


def _make(exp2: Callable[[Any], Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward kernels with an exponential."""

    @njit(cache=True, nogil=True, fastmath=True)
    def forward(
        u: Any, delta: Any, rates: Any, B: Any, C: Any, y: Any, starts: Any, every: int,
        first: int, last: int,
    ) -> None:  # fmt: skip
        length, channels = u.shape[1], u.shape[2]
        states = rates.shape[1]
        h = np.empty((states, channels), u.dtype)
        pushed = np.empty(channels, u.dtype)
        step = np.empty(channels, u.dtype)
        total = np.empty(channels, u.dtype)
        for g in range(first, last):
            rate = rates[g % rates.shape[0]]
            h[:] = 0
            for t in range(length):
                if every and t % every == 0:
                    starts[g, t // every] = h
                for c in range(channels):
                    step[c] = delta[g, t, c]
                    pushed[c] = step[c] * u[g, t, c]
                    total[c] = 0
                for n in range(states):
                    b, out = B[g, t, n], C[g, t, n]
                    row, state = rate[n], h[n]
                    for c in range(channels):
                        value = exp2(step[c] * row[c]) * state[c] + pushed[c] * b
                        state[c] = value
                        total[c] += value * out
                for c in range(channels):
                    y[g, t, c] = total[c]

    @njit(cache=True, nogil=True, fastmath=True)
    def backward(
        u: Any, delta: Any, rates: Any, B: Any, C: Any, dy: Any, starts: Any, every: int,
        du: Any, ddelta: Any, drates: Any, dB: Any, dC: Any, first: int, last: int,
    ) -> None:  # fmt: skip
        length, channels = u.shape[1], u.shape[2]
        states = rates.shape[1]
        decay = np.empty((every, states, channels), u.dtype)
        h = np.empty((every + 1, states, channels), u.dtype)
        carry = np.empty((states, channels), u.dtype)
        pushed = np.empty(channels, u.dtype)
        along = np.empty(channels, u.dtype)
        faded = np.empty(channels, u.dtype)
        ln2 = u.dtype.type(0.6931471805599453)
        for g in range(first, last):
            rate = rates[g % rates.shape[0]]
            carry[:] = 0
            for block in range((length - 1) // every, -1, -1):
                begin = block * every
                steps = min(every, length - begin)
                h[0] = starts[g, block]
                for i in range(steps):
                    t = begin + i
                    for c in range(channels):
                        pushed[c] = delta[g, t, c] * u[g, t, c]
                    for n in range(states):
                        b = B[g, t, n]
                        row, before, after, fade = rate[n], h[i, n], h[i + 1, n], decay[i, n]
                        for c in range(channels):
                            a = exp2(delta[g, t, c] * row[c])
                            fade[c] = a
                            after[c] = a * before[c] + pushed[c] * b
                for i in range(steps - 1, -1, -1):
                    t = begin + i
                    for c in range(channels):
                        pushed[c] = delta[g, t, c] * u[g, t, c]
                        along[c] = 0
                        faded[c] = 0
                    for n in range(states):
                        b, out = B[g, t, n], C[g, t, n]
                        row, before, after, fade = rate[n], h[i, n], h[i + 1, n], decay[i, n]
                        back, slope = carry[n], drates[g, n]
                        sum_b = u.dtype.type(0)
                        sum_c = u.dtype.type(0)
                        for c in range(channels):
                            grad = dy[g, t, c]
                            total = back[c] + grad * out
                            sum_c += grad * after[c]
                            sum_b += total * pushed[c]
                            along[c] += total * b
                            onward = total * fade[c]
                            back[c] = onward
                            weight = onward * before[c]
                            faded[c] += weight * row[c]
                            slope[c] += delta[g, t, c] * weight
                        dB[g, t, n] = sum_b
                        dC[g, t, n] = sum_c
                    for c in range(channels):
                        du[g, t, c] = along[c] * delta[g, t, c]
                        ddelta[g, t, c] = along[c] * u[g, t, c] + faded[c] * ln2

    return forward, backward


_KERNELS = {torch.float32: _make(_exp2_single), torch.float64: _make(_exp2_double)}


def scan_numba(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Shapes as `rsfuse.ops.scan.selective_scan`, delta ready to use."""
    b, k, d, length = u.shape

    def steps_outside(x: Tensor) -> Tensor:  # (b, k, c, L) -> (G, L, c)
        return x.reshape(b * k, x.shape[2], length).transpose(1, 2).contiguous()

    y = _Scan.apply(
        steps_outside(u), steps_outside(delta), A.transpose(1, 2).contiguous(), steps_outside(B),
        steps_outside(C),
    )  # fmt: skip
    return y.transpose(1, 2).reshape(b, k, d, length)


class _Scan(torch.autograd.Function):
    """u, delta (G, L, d), rates (k, N, d), B, C (G, L, N) -> y (G, L, d); group g is of g mod k."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor) -> Tensor:
        groups, length, channels = u.shape
        keep = any(ctx.needs_input_grad)
        every = _KEPT_EVERY if keep else 0
        blocks = -(-length // every) if keep else 0
        starts = u.new_empty(groups, blocks, rates.shape[1], channels)
        y = torch.empty_like(u)
        scaled = rates * _LOG2E
        arrays = [_array(x) for x in (u, delta, scaled, B, C, y, starts)]
        forward, _ = _KERNELS[u.dtype]
        _share(groups, lambda first, last: forward(*arrays, every, first, last))
        if keep:
            ctx.save_for_backward(u, delta, scaled, B, C, starts)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, scaled, B, C, starts = ctx.saved_tensors
        groups, _, channels = u.shape
        kinds, states = scaled.shape[:2]
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        drates = u.new_zeros(groups, states, channels)
        inputs = [_array(x) for x in (u, delta, scaled, B, C, grads[0].contiguous(), starts)]
        outputs = [_array(x) for x in (du, ddelta, drates, dB, dC)]
        _, backward = _KERNELS[u.dtype]
        _share(groups, lambda first, last: backward(*inputs, _KEPT_EVERY, *outputs, first, last))
        return du, ddelta, drates.view(-1, kinds, states, channels).sum(0), dB, dC


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.detach().numpy()


def _share(groups: int, work: Callable[[int, int], None]) -> None:
    """Run `work` on all groups, shared among the threads."""
    threads = max(1, min(torch.get_num_threads(), groups))
    pool = _pool(os.getpid(), threads)
    ends = [groups * i // threads for i in range(threads + 1)]
    for done in [pool.submit(work, a, b) for a, b in pairwise(ends)]:
        done.result()


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads in which denormal numbers count as zero; a forked process makes its own."""
    return ThreadPoolExecutor(
        threads,
        thread_name_prefix="rsfuse-scan",
        initializer=torch.set_flush_denormal,
        initargs=(True,),
    )
