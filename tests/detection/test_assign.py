"""Which cells answer for which objects, against a dense reference and by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rsfuse.detection.assign import assign, candidates, cells_inside
from rsfuse.detection.model import Cells, cells_of

CPU = torch.device("cpu")


def dense_inside(boxes: Tensor, cells: Cells, least: float) -> tuple[Tensor, Tensor]:
    """All cells against all boxes: the reference."""
    cx, cy, w, h, angle = (boxes[:, i, None] for i in range(5))
    dx, dy = cells.centres[None, :, 0] - cx, cells.centres[None, :, 1] - cy
    cos, sin = torch.cos(angle), torch.sin(angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    half_w = torch.maximum(w, least * cells.strides[None]) / 2
    half_h = torch.maximum(h, least * cells.strides[None]) / 2
    box, cell = ((u.abs() <= half_w) & (v.abs() <= half_h)).nonzero(as_tuple=True)
    return box, cell


@pytest.mark.parametrize("seed", range(8))
def test_cells_in_boxes_are_those_of_the_dense_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = cells_of([(24, 20), (12, 10), (6, 5)], (8, 16, 32), CPU)
    boxes = np.stack(
        [
            rng.uniform(-40, 200, 12),  # some lie outside of the image
            rng.uniform(-40, 230, 12),
            np.exp(rng.uniform(0, 6, 12)),
            np.exp(rng.uniform(0, 5, 12)),
            rng.uniform(-1.57, 1.57, 12),
        ],
        axis=1,
    )
    if seed % 2:
        boxes[:, :4], boxes[:, 4] = np.round(boxes[:, :4] / 4) * 4, 0  # borders on centres
    found = torch.from_numpy(boxes.astype(np.float32))
    for least in (0.0, 2.5):
        ours, reference = cells_inside(found, cells, least), dense_inside(found, cells, least)
        assert torch.equal(ours[0], reference[0])
        assert torch.equal(ours[1], reference[1])


def test_no_boxes_have_no_cells() -> None:
    cells = cells_of([(4, 4)], (8,), CPU)
    box, cell = cells_inside(torch.zeros(0, 5), cells)
    assert len(box) == len(cell) == 0


def test_small_objects_have_candidates_at_the_finest_level_alone() -> None:
    cells = cells_of([(8, 8), (4, 4)], (8, 16), CPU)
    obj, cell = candidates(torch.tensor([[12.0, 12, 4, 4, 0.0], [32.0, 32, 40, 16, 0.0]]), cells)
    # Centres within 2.5 / 2 strides of (12, 12): 4, 12 and 20 each way.
    assert sorted(map(tuple, cells.centres[cell[obj == 0]].tolist())) == sorted(
        (x, y) for x in (4.0, 12.0, 20.0) for y in (4.0, 12.0, 20.0)
    )
    assert set(cells.strides[cell[obj == 1]].tolist()) == {8.0, 16.0}


def nowhere(count: int) -> Tensor:
    """Boxes that overlap nothing."""
    boxes = torch.ones(count, 5)
    boxes[:, :2] = 10_000.0
    return boxes


def test_the_worked_example() -> None:
    # Cells of 8 pixels, 4 x 4; one object of 16 x 16 around (12, 12), which is cell 5.
    cells = cells_of([(4, 4)], (8,), CPU)
    target = torch.tensor([[12.0, 12, 16, 16, 0.0]])
    boxes = nowhere(16)
    boxes[5] = target[0]  # IoU 1
    boxes[6] = torch.tensor([16.0, 12, 16, 16, 0.0])  # 12 x 16 of 512 - 192: IoU 0.6
    boxes[9] = torch.tensor([12.0, 20, 16, 16, 0.0])  # 16 x 8 of 512 - 128: IoU 1/3
    scores = torch.full((16, 2), 0.9)
    scores[[5, 6, 9], 1] = torch.tensor([0.5, 0.8, 0.5])
    found = assign(scores, boxes, target, torch.tensor([1]), cells)
    # The overlaps add up to 1.93, so two cells; three is the least.
    quality = dict(zip(found.cell.tolist(), found.quality.tolist(), strict=True))
    # Fit is score x IoU^4: 0.5, 0.8 x 0.1296 and 0.5 / 81; the best is worth its overlap, 1.
    assert quality == pytest.approx({5: 1.0, 6: 0.8 * 0.1296 / 0.5, 9: 1 / 81}, rel=1e-4)
    assert found.target.tolist() == [0, 0, 0]


def test_as_many_cells_answer_as_the_overlaps_add_up_to() -> None:
    cells = cells_of([(8, 8)], (8,), CPU)
    target = torch.tensor([[32.0, 32, 48, 48, 0.0]])
    for overlapping in (4, 6, 20):
        boxes = nowhere(64)
        cell = candidates(target, cells)[1][:overlapping]
        boxes[cell] = target[0]
        found = assign(torch.full((64, 1), 0.5), boxes, target, torch.tensor([0]), cells)
        assert len(found.cell) == min(overlapping, 10)
        assert set(found.cell.tolist()) <= set(cell.tolist())


def test_a_shared_cell_answers_for_the_object_that_it_overlaps_more() -> None:
    cells = cells_of([(4, 4)], (8,), CPU)
    targets = torch.tensor([[12.0, 12, 20, 20, 0.0], [20.0, 12, 20, 20, 0.0]])
    boxes = torch.cat([cells.centres, torch.full((16, 2), 20.0), torch.zeros(16, 1)], dim=1)
    found = assign(torch.full((16, 1), 0.5), boxes, targets, torch.tensor([0, 0]), cells)
    assert len(found.cell) == len(set(found.cell.tolist()))
    answers = dict(zip(found.cell.tolist(), found.target.tolist(), strict=True))
    assert answers[5] == 0  # its box is the first object
    assert answers[6] == 1
    assert float(found.quality.max()) == pytest.approx(1.0)


def test_untrained_cells_answer_where_they_are_nearest() -> None:
    cells = cells_of([(8, 8)], (8,), CPU)
    target = torch.tensor([[29.0, 28, 30, 30, 0.4]])
    found = assign(torch.full((64, 1), 0.01), nowhere(64), target, torch.tensor([0]), cells)
    apart = (cells.centres - target[0, :2]).norm(dim=1)
    assert set(found.cell.tolist()) == set(torch.argsort(apart)[:3].tolist())
    assert float(found.quality.max()) == 0.0


def test_no_objects_no_answers() -> None:
    cells = cells_of([(4, 4)], (8,), CPU)
    none = torch.zeros(0, dtype=torch.int64)
    assert len(assign(torch.rand(16, 1), nowhere(16), torch.zeros(0, 5), none, cells).cell) == 0
    outside = torch.tensor([[-500.0, -500, 8, 8, 0.0]])
    found = assign(torch.rand(16, 1), nowhere(16), outside, torch.tensor([0]), cells)
    assert len(found.cell) == 0
