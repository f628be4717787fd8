"""Block correlation: the kernel equals the plain loop in values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.ops.correlation import block_correlation, plain_block_correlation


@settings(max_examples=12, deadline=None)
@given(
    radius=st.integers(0, 4),
    stride=st.sampled_from([1, 2, 3]),
    block=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_kernel_equals_the_plain_loop(
    radius: int, stride: int, block: int, channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, channels, 2 * stride * block, 3 * stride * block)
    pair = [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(2)]
    size = {"radius": radius, "stride": stride, "block": block}
    fast, plain = block_correlation(*pair, **size), plain_block_correlation(*pair, **size)
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
    weight = torch.randn(fast.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), pair),
        torch.autograd.grad((plain * weight).sum(), pair),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_displaced_point_answers_at_its_displacement() -> None:
    f0, f1 = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    f0[0, 0, 8, 4], f1[0, 0, 7, 6] = 2.0, 3.0  # moved by dx = 2, dy = -1
    found = block_correlation(f0, f1, radius=3, stride=2, block=4)
    assert found.shape == (1, 49, 2, 2)
    assert float(found[0, (-1 + 3) * 7 + (2 + 3), 1, 0]) == 6.0
    assert float(found.sum()) == 6.0


def test_double_precision_takes_the_plain_loop() -> None:
    f = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    found = block_correlation(f, f, radius=1, stride=1, block=8)
    assert found.dtype == torch.float64
    assert found[0, 4, 0, 0] == pytest.approx(2 * 64)


def test_threads_may_enter_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    f = torch.ones(2, 2, 32, 32)
    expected = plain_block_correlation(f, f, radius=2, stride=2, block=4)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda _: block_correlation(f, f, radius=2, stride=2, block=4), range(16))
        )
    assert all(torch.allclose(part, expected) for part in found)
