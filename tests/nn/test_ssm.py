"""State-space blocks: directions, windows, the exchange, and one scan for a whole stage."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rsfuse.nn import ssm
from rsfuse.nn.ssm import Exchange, SSMSize, fold, from_windows, to_windows, unfold

SMALL: dict[str, Any] = {"width": 8, "cell": 2, "states": 3, "rank": 2, "mlp": 2, "norm": "layer"}


def test_four_directions_in_their_order() -> None:
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    rows, columns, rows_back, columns_back = unfold(image)[0, :, 0].tolist()
    assert rows == [0, 1, 2, 3, 4, 5]
    assert columns == [0, 3, 1, 4, 2, 5]
    assert rows_back == rows[::-1]
    assert columns_back == columns[::-1]


def test_a_single_pixel_comes_back_where_it_was_from_each_direction() -> None:
    image = torch.zeros(1, 1, 3, 5)
    image[0, 0, 1, 3] = 1
    sequences = unfold(image)
    for k in range(4):
        alone = torch.zeros_like(sequences)
        alone[:, k] = sequences[:, k]
        assert torch.equal(fold(alone, 3, 5), image)
    assert sequences[0, :, 0].argmax(-1).tolist() == [8, 10, 6, 4]


@pytest.mark.parametrize(("side", "shift"), [(4, 0), (4, 2), (4, 1), (5, 2), (1, 0)])
def test_windows_go_round_and_moved_ones_cross_borders(side: int, shift: int) -> None:
    image = torch.randn(2, 3, 2 * side, 3 * side)
    windows = to_windows(image, side, shift)
    assert windows.shape[1:] == (3, side, side)
    assert torch.equal(from_windows(windows, 2 * side, 3 * side, side, shift), image)
    first = windows[0] if not shift else windows[0, :, side - shift :, side - shift :]
    assert torch.equal(first, image[0, :, : first.shape[1], : first.shape[2]])


def block(sensors: int = 2, shift: int = 0, **changes: Any) -> Exchange:
    torch.manual_seed(0)
    size = SSMSize(**{**SMALL, "window": 4, **changes})
    return Exchange(size, [f"s{i}" for i in range(sensors)], shift).eval()


def tokens(sensors: int = 2, side: int = 8, batch: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(batch, side, side, 8, generator=random) for _ in range(sensors)]


@pytest.mark.parametrize(("sensors", "groups"), [(2, 16), (3, 36)])
def test_one_scan_for_a_whole_stage(
    monkeypatch: pytest.MonkeyPatch, sensors: int, groups: int
) -> None:
    calls = []

    def counted(u: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(tuple(u.shape))
        return real(u, *rest, **named)

    real = ssm.selective_scan
    monkeypatch.setattr(ssm, "selective_scan", counted)
    block(sensors)(tokens(sensors))
    assert calls == [(2 * 4, groups, 8, 16)]  # 2 images of 4 windows, L = 16


def test_a_sensor_alone_decides_its_own_features() -> None:
    exchange, (a, b) = block(), tokens()
    with torch.no_grad():
        (own_a, _), (common_a, common_b) = exchange([a, b])
        (same_a, _), (other_a, other_b) = exchange([a, b.flip(1)])
    assert torch.equal(own_a, same_a)
    assert not torch.allclose(common_a, other_a)
    assert not torch.allclose(common_b, other_b)


@pytest.mark.parametrize("swap", ["all", "dBC"])
def test_what_is_exchanged(swap: str) -> None:
    """Rates and skips of the partner matter with "all", the sensor's own with "dBC"."""
    exchange, given = block(swap=swap), tokens()
    with torch.no_grad():
        before = exchange(given)[1]
        exchange.cross.mixer("s1").scan.D += 1
        exchange.cross.mixer("s1").scan.A_log += 1
        exchange.cross.mixer("s1").scan.dt_bias += 1
        after = exchange(given)[1]
        exchange.cross.mixer("s1").scan.x_proj += 0.1
        last = exchange(given)[1]
    moved = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert moved == ([True, False] if swap == "all" else [False, True])
    # step sizes, B and C come from the partner either way
    assert [not torch.equal(x, y) for x, y in zip(after, last, strict=True)] == [True, False]


def test_of_three_sensors_each_is_filtered_by_the_mean_of_its_partners() -> None:
    exchange, (a, b, _) = block(3), tokens(3)
    for name in ("s1", "s2"):
        exchange.cross.mixer(name).load_state_dict(exchange.cross.mixer("s1").state_dict())
    pair = block(2)
    pair.cross.norm, pair.cross.scan_norm = exchange.cross.norm, exchange.cross.scan_norm
    pair.cross.s0, pair.cross.s1 = exchange.cross.mixer("s0"), exchange.cross.mixer("s1")
    with torch.no_grad():
        three = exchange([a, b, b])[1][0]  # two equal partners are as good as one
        two = pair([a, b])[1][0]
    torch.testing.assert_close(three, two, rtol=0, atol=1e-6)


def test_windows_do_not_see_each_other_but_for_the_local_convolution() -> None:
    exchange, given = block(), tokens()
    changed = [t.clone() for t in given]
    for t in changed:
        t[:, :, 6:] = t[:, :, 6:].flip(-1)  # inside the right windows, two tokens from the border
    with torch.no_grad():
        one, two = exchange(given), exchange(changed)
    for x, y in zip([*one[0], *one[1]], [*two[0], *two[1]], strict=True):
        assert torch.equal(x[:, :, :4], y[:, :, :4])
        assert not torch.allclose(x[:, :, 4:6], y[:, :, 4:6])


def test_a_tile_of_one_moved_window_is_cut_like_any_other() -> None:
    exchange = block(shift=2)
    given = [t[:, :4, :4] for t in tokens()]
    around = [torch.nn.functional.pad(t, (0, 0, 0, 4, 0, 4)) for t in given]
    with torch.no_grad():
        alone, inside = exchange(given)[0][0], exchange(around)[0][0]
    # the first window of the moved grid holds the first two rows and columns of both tiles
    torch.testing.assert_close(alone[:, :2, :2], inside[:, :2, :2], rtol=0, atol=1e-6)


def test_an_image_does_not_see_its_batch() -> None:
    exchange, given = block(shift=2), tokens(batch=3)
    with torch.no_grad():
        together = exchange(given)[1][0]
        alone = torch.cat([exchange([t[i : i + 1] for t in given])[1][0] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
