"""The detector: shapes, sizes, angles, headings, and that it can be exported."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rsfuse.detection.model import (
    Cells,
    Decoded,
    Detector,
    angle_of,
    cells_of,
    decode,
    heading_of,
    phases_of,
)
from rsfuse.ops.boxes import canonical

CPU = torch.device("cpu")


def wrapped(angle: torch.Tensor, period: float) -> torch.Tensor:
    """The angle in [-period / 2, period / 2)."""
    return torch.remainder(angle + period / 2, period) - period / 2


@pytest.mark.parametrize(
    ("bands", "size", "finest"), [(1, (70, 33), 8), (3, (64, 96), 8), (5, (64, 64), 4)]
)
def test_any_size_and_number_of_bands(bands: int, size: tuple[int, int], finest: int) -> None:
    model = Detector(3, bands=bands, finest=finest, width=16).eval()
    with torch.no_grad():
        found = model(torch.rand(2, bands, *size))
    cells = model.cells(*size)
    assert float(cells.strides.min()) == finest
    assert found.logits.shape == (2, len(cells.centres), 3)
    assert found.boxes.shape == (2, len(cells.centres), 5)
    assert found.phases.shape == (2, len(cells.centres), 4)
    assert found.fronts is None


def test_a_padded_image_is_the_image_with_zeros() -> None:
    model = Detector(1, bands=1, width=16).eval()
    image = torch.rand(1, 1, 40, 70)
    whole = torch.zeros(1, 1, 64, 96)
    whole[..., :40, :70] = image
    with torch.no_grad():
        torch.testing.assert_close(model(image).boxes, model(whole).boxes, rtol=0, atol=0)


def test_batched_equals_single() -> None:
    model = Detector(2, bands=1, width=16).eval()
    images = torch.rand(3, 1, 64, 64)
    with torch.no_grad():
        together = model(images).boxes
        alone = torch.cat([model(images[i : i + 1]).boxes for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


def test_phases_give_their_angle() -> None:
    angle = torch.linspace(-math.pi / 2, math.pi / 2 - 1e-3, 181)
    assert wrapped(angle_of(phases_of(angle)) - angle, math.pi).abs().max() < 1e-5
    # Their length does not matter.
    assert wrapped(angle_of(3 * phases_of(angle)) - angle, math.pi).abs().max() < 1e-5


def test_a_square_has_its_angle_to_a_quarter_turn_where_the_first_phase_says_nothing() -> None:
    torch.manual_seed(0)
    angle = torch.linspace(-math.pi / 2, math.pi / 2 - 1e-3, 181)
    phases = phases_of(angle)
    phases[:, :2] = 0.01 * torch.randn(181, 2)
    assert wrapped(angle_of(phases) - angle, math.pi / 2).abs().max() < 1e-5


def test_what_is_decoded_is_what_was_encoded() -> None:
    cells = cells_of([(3, 4), (2, 2)], (8, 16), CPU)
    rng = np.random.default_rng(0)
    count = len(cells.centres)
    sides = np.sort(np.exp(rng.uniform(0.5, 4, (count, 2))), axis=1)[:, ::-1]
    centres = rng.uniform(0, 32, (count, 2))
    columns = [centres, sides, rng.uniform(-1.57, 1.57, (count, 1))]
    boxes = torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))
    stride = cells.strides[:, None]
    places = torch.cat(
        [(boxes[:, :2] - cells.centres) / stride, torch.log(boxes[:, 2:4] / stride)], dim=1
    )
    back = canonical(decode(places, phases_of(boxes[:, 4]), cells))
    torch.testing.assert_close(back[:, :4], boxes[:, :4], rtol=1e-5, atol=1e-4)
    assert wrapped(back[:, 4] - boxes[:, 4], math.pi).abs().max() < 1e-5


def test_wild_numbers_decode_to_finite_boxes() -> None:
    cells = cells_of([(1, 2)], (8,), CPU)
    places = torch.tensor([[0.0, 0, 1e6, -1e6], [0.0, 0, 0, 0]])
    boxes = decode(places, torch.zeros(2, 4), cells)
    assert torch.isfinite(boxes).all()
    assert (boxes[:, 2:4] > 0).all()


def test_the_heading_is_the_end_of_the_box_that_the_front_points_to() -> None:
    heading = torch.linspace(-math.pi, math.pi - 1e-3, 73)
    angle = wrapped(heading, math.pi)
    fronts = 0.3 * torch.stack([torch.cos(heading + 0.5), torch.sin(heading + 0.5)], dim=1)
    assert wrapped(heading_of(angle, fronts) - heading, 2 * math.pi).abs().max() < 1e-5


def test_a_heading_is_an_addition_to_the_same_network() -> None:
    torch.manual_seed(0)
    plain = Detector(2, bands=1, width=16).eval()
    other = Detector(2, bands=1, width=16, heading=True).eval()
    assert set(other.state_dict()) - set(plain.state_dict()) == {
        "head.front.weight",
        "head.front.bias",
    }
    other.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found = other(image)
        torch.testing.assert_close(found.boxes, plain(image).boxes, rtol=0, atol=0)
    assert found.fronts is not None
    assert found.fronts.shape == (1, found.logits.shape[1], 2)


def test_cells_are_numbered_along_rows_of_fine_levels_first() -> None:
    found = cells_of([(1, 2), (1, 1)], (8, 16), CPU)
    assert isinstance(found, Cells)
    assert found.centres.tolist() == [[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]]
    assert found.strides.tolist() == [8.0, 8.0, 16.0]
    assert found.levels == ((1, 2, 8), (1, 1, 16))


# The exporter of torch warns about torch itself.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_network_gives_the_same_boxes(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is an extra")
    onnx = pytest.importorskip("onnx", reason="onnx is an extra")
    pytest.importorskip("onnxscript", reason="onnxscript is an extra")
    torch.manual_seed(0)
    model = Detector(2, bands=1, width=16)
    with torch.no_grad():  # so that cells differ
        for _ in range(30):
            model(torch.rand(4, 1, 64, 64))
        for layer in (model.head.place, model.head.phase, model.head.score):
            layer.weight.normal_(std=2.0)
            torch.nn.init.zeros_(layer.bias)
    network, image = Decoded(model.eval()), torch.rand(1, 1, 70, 64)
    program = torch.onnx.export(
        network, (image,), dynamo=True, verbose=False,
        input_names=["image"], output_names=["output0"],
    )  # fmt: skip
    assert program is not None
    path = tmp_path / "model.onnx"
    program.save(path)
    with torch.no_grad():
        expected = network(image)[0]
    assert expected.shape[0] == 4 + 2 + 1
    assert expected.std(dim=1).min() > 0.05
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found[0][:4], expected[:4].numpy(), atol=0.05)
    np.testing.assert_allclose(found[0][4:-1], expected[4:-1].numpy(), atol=1e-4)
    off = wrapped(torch.from_numpy(found[0][-1]) - expected[-1], math.pi / 2)
    assert off.abs().max() < 1e-3
    # Operators of the standard alone.
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
