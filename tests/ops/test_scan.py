"""The selective scan: every engine equals the definition, in values and gradients."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rsfuse.errors import InputError
from rsfuse.ops.scan import selective_scan

ENGINES = ["torch", "numba"]


def make(b: int, k: int, d: int, n: int, length: int, scale: float = 1.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(b + 10 * k + 100 * d + 1000 * n + length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    delta = scale * torch.nn.functional.softplus(normal(b, k, d, length) - 3)
    rates = -torch.arange(1, n + 1, dtype=torch.float64).expand(k, d, n)
    rates = rates * torch.exp(0.1 * normal(k, d, n))
    tensors = [normal(b, k, d, length), delta, rates, normal(b, k, n, length)]
    tensors += [normal(b, k, n, length), normal(k, d)]
    return [x.clone().requires_grad_() for x in tensors]


def run(arguments: list[Tensor], engine: str) -> list[Tensor]:
    """The result and all gradients."""
    fresh = [x.detach().clone().requires_grad_() for x in arguments]
    y = selective_scan(*fresh, engine=engine)  # type: ignore[arg-type]
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weight).sum().backward()
    return [y.detach(), *[x.grad for x in fresh]]  # type: ignore[list-item]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 8, 24, 1), (2, 3, 5, 4, 37), (1, 4, 16, 8, 256), (2, 1, 3, 64, 18)]
)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_engines_equal_the_loop(engine: str, sizes: tuple[int, ...], scale: float) -> None:
    arguments = make(*sizes, scale=scale)
    for found, expected in zip(run(arguments, engine), run(arguments, "loop"), strict=True):
        assert torch.isfinite(found).all()
        gap = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-300)
        assert gap < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_long_sequences(engine: str) -> None:
    arguments = make(1, 1, 2, 4, 16_384)
    with torch.no_grad():
        found = selective_scan(*arguments, engine=engine)  # type: ignore[arg-type]
        expected = selective_scan(*arguments, engine="loop")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("engine", ENGINES)
def test_single_precision(engine: str) -> None:
    arguments = make(2, 4, 16, 24, 100)
    expected = run(arguments, "loop")
    found = run([x.detach().float() for x in arguments], engine)
    for ours, truth in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - truth).abs().max() / truth.abs().max() < 2e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_extreme_steps_stay_finite(engine: str) -> None:
    u, _, A, B, C, D = (x.detach().float() for x in make(1, 1, 4, 24, 64))
    for step in (0.0, 1e-30, 10.0, 1e4):
        delta = torch.full_like(u, step)
        y = selective_scan(u, delta, A, B, C, D, engine=engine)  # type: ignore[arg-type]
        assert torch.isfinite(y).all()
    flat = selective_scan(torch.zeros_like(u), delta, A, B, C, D, engine=engine)  # type: ignore[arg-type]
    assert (flat == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_gradcheck(engine: str) -> None:
    arguments = make(1, 2, 3, 2, 5)
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, engine=engine),  # type: ignore[arg-type]
        arguments,
    )


def test_bias_comes_before_the_softplus() -> None:
    u, delta, A, B, C, _ = make(1, 1, 3, 2, 4)
    bias = torch.full((1, 3), -2.0, dtype=torch.float64)
    ready = torch.nn.functional.softplus(delta + bias[..., None])
    expected = selective_scan(u, ready, A, B, C, engine="loop")
    found = selective_scan(u, delta, A, B, C, delta_bias=bias, delta_softplus=True)
    torch.testing.assert_close(found, expected)


def test_one_step_on_paper() -> None:
    one = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    y = selective_scan(
        2 * one, 0.5 * one, -torch.ones(1, 1, 1, dtype=torch.float64), 3 * one, 5 * one,
        torch.full((1, 1), 7.0, dtype=torch.float64),
    )  # fmt: skip
    first = 0.5 * 3 * 2  # h_1
    second = torch.exp(torch.tensor(-0.5, dtype=torch.float64)) * first + first
    torch.testing.assert_close(y.flatten(), torch.stack([torch.tensor(first * 5 + 14.0).double(),
                                                         second * 5 + 14.0]))  # fmt: skip


def test_two_threads_give_the_same_as_one() -> None:
    arguments = make(3, 2, 4, 4, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(arguments, "numba")
        torch.set_num_threads(2)
        two = run(arguments, "numba")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_wrong_shapes_are_named() -> None:
    u, delta, A, B, C, D = make(1, 2, 3, 4, 5)
    with pytest.raises(InputError, match="do not make a scan"):
        selective_scan(u, delta, A, C[:, :1], B, D)
    with pytest.raises(InputError, match="unknown"):
        selective_scan(u, delta, A, B, C, D, engine="fortran")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not torch.cuda.is_available(),
    reason="needs Triton and a GPU",
)
def test_triton_equals_the_loop() -> None:
    arguments = [x.detach().float().cuda() for x in make(2, 4, 40, 24, 100)]
    for found, expected in zip(run(arguments, "triton"), run(arguments, "loop"), strict=True):
        assert (found - expected).abs().max() / expected.abs().max() < 1e-5


INTERPRETED = """
import sys
sys.path.insert(0, {folder!r})
from test_scan import make, run
for shape in ((2, 4, 40, 24, 37), (2, 2, 33, 64, 16), (1, 4, 64, 16, 50), (1, 1, 3, 5, 2)):
    arguments = [x.detach().float() for x in make(*shape)]
    for found, expected in zip(run(arguments, "triton"), run(arguments, "loop"), strict=True):
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max(), shape
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_equals_the_loop_in_its_interpreter() -> None:
    """Values and all gradients, on the CPU; what a GPU makes of the kernels is not seen here."""
    subprocess.run(
        [sys.executable, "-c", INTERPRETED.format(folder=str(Path(__file__).parent))],
        check=True, timeout=120, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
