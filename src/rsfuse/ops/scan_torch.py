"""The selective scan in plain PyTorch, block by block.

Steps lie first and channels last, so that every operation runs over long stretches of memory. A
block of steps is computed at once but for the recurrence itself, which is one fused multiply-add
per step. The backward pass keeps the states at the starts of blocks and computes the rest again.
"""

from typing import Any

import torch
from torch import Tensor

# Values per step that a block works on at least, and per block at most, for each thread.
_PER_STEP = 1 << 16
_PER_BLOCK = 1 << 19


def scan_torch(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Shapes as `rsfuse.ops.scan.selective_scan`, delta ready to use."""
    b, k, d, length = u.shape
    groups = b * k

    def steps_first(x: Tensor) -> Tensor:  # (b, k, c, L) -> (L, G, c)
        return x.reshape(groups, x.shape[2], length).permute(2, 0, 1).contiguous()

    rates = A.transpose(1, 2).expand(b, -1, -1, -1).reshape(groups, A.shape[2], d)
    y = _Scan.apply(steps_first(u), steps_first(delta), rates, steps_first(B), steps_first(C))
    return y.permute(1, 2, 0).reshape(b, k, d, length)


def _plan(groups: int, length: int, states: int, channels: int) -> tuple[int, int]:
    """Groups and steps of a block."""
    threads = torch.get_num_threads()
    per_group = states * channels
    together = max(1, min(groups, _PER_STEP * threads // per_group))
    while groups % together:
        together -= 1
    return together, max(1, min(length, _PER_BLOCK * threads // (together * per_group)))


class _Scan(torch.autograd.Function):
    """u, delta (L, G, d), rates (G, N, d), B, C (L, G, N) -> y (L, G, d)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor) -> Tensor:
        length, groups, channels = u.shape
        states = rates.shape[1]
        together, block = _plan(groups, length, states, channels)
        y = torch.empty_like(u)
        keep = any(ctx.needs_input_grad)
        starts = u.new_empty(-(-length // block), groups, states, channels) if keep else None
        decay = u.new_empty(block, together, states, channels)
        state = torch.empty_like(decay)
        out = u.new_empty(block * together, 1, channels)
        h = u.new_empty(together, states, channels)
        for first in range(0, groups, together):
            mine = slice(first, first + together)
            h.zero_()
            for number, begin in enumerate(range(0, length, block)):
                span = slice(begin, min(begin + block, length))
                if starts is not None:
                    starts[number, mine] = h
                n = _states(u, delta, rates, B, h, decay, state, span, mine)
                h.copy_(state[n - 1])
                rows = out[: n * together]
                torch.bmm(
                    C[span, mine].reshape(n * together, 1, states),
                    state[:n].view(n * together, states, channels),
                    out=rows,
                )
                y[span, mine] = rows.view(n, together, channels)
        if keep:
            ctx.save_for_backward(u, delta, rates, B, C, starts)
            ctx.plan = (together, block)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, rates, B, C, starts = ctx.saved_tensors
        together, block = ctx.plan
        dy = grads[0].contiguous()
        length, groups, channels = u.shape
        states = rates.shape[1]
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC, drates = torch.empty_like(B), torch.empty_like(C), torch.zeros_like(rates)
        decay = u.new_empty(block, together, states, channels)
        state, adjoint = torch.empty_like(decay), torch.empty_like(decay)
        carry = u.new_empty(together, states, channels)
        for first in range(0, groups, together):
            mine = slice(first, first + together)
            carry.zero_()
            for number in range(-(-length // block) - 1, -1, -1):
                span = slice(number * block, min((number + 1) * block, length))
                h0 = starts[number, mine]
                n = _states(u, delta, rates, B, h0, decay, state, span, mine)
                a, h, g = decay[:n], state[:n], adjoint[:n]
                step, grad = delta[span, mine], dy[span, mine]
                pushed = step * u[span, mine]
                rows = n * together
                shape = (rows, states, channels)
                dC[span, mine] = torch.bmm(h.view(shape), grad.reshape(rows, channels, 1)).view(
                    n, together, states
                )
                # g_t = C_t dy_t + a_(t+1) g_(t+1)
                torch.mul(C[span, mine].unsqueeze(3), grad.unsqueeze(2), out=g)
                a_, g_ = a.unbind(0), g.unbind(0)
                g_[n - 1].add_(carry)
                for t in range(n - 2, -1, -1):
                    torch.addcmul(g_[t], a_[t + 1], g_[t + 1], out=g_[t])
                dB[span, mine] = torch.bmm(g.view(shape), pushed.reshape(rows, channels, 1)).view(
                    n, together, states
                )
                along_b = torch.bmm(B[span, mine].reshape(rows, 1, states), g.view(shape)).view(
                    n, together, channels
                )
                g.mul_(a)
                carry.copy_(g_[0])
                # g becomes a_t g_t h_(t-1)
                if n > 1:
                    g[1:].mul_(h[: n - 1])
                g_[0].mul_(h0)
                torch.mul(g, step.unsqueeze(2), out=a)
                drates[mine] += a.sum(0)
                du[span, mine] = along_b * step
                ddelta[span, mine] = along_b * u[span, mine] + g.mul_(rates[mine]).sum(2)
        return du, ddelta, drates, dB, dC


def _states(
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    B: Tensor,
    h: Tensor,
    decay: Tensor,
    state: Tensor,
    span: slice,
    mine: slice,
) -> int:
    """Fill the decays and states of a block that starts from `h`; the number of its steps."""
    step = delta[span, mine]
    n = len(step)
    a, b = decay[:n], state[:n]
    torch.mul(step.unsqueeze(2), rates[mine], out=a)
    a.exp_()
    torch.mul((step * u[span, mine]).unsqueeze(2), B[span, mine].unsqueeze(3), out=b)
    a_, b_ = a.unbind(0), b.unbind(0)
    torch.addcmul(b_[0], a_[0], h, out=b_[0])
    for t in range(1, n):
        torch.addcmul(b_[t], a_[t], b_[t - 1], out=b_[t])
    return n
