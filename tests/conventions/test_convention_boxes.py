"""Oriented boxes of simulated objects: docs/conventions.md, "Oriented boxes"."""

import numpy as np

from rsfuse.simulate.objects import corners_to_boxes


def test_convention_oriented_boxes() -> None:
    # A rectangle 10 x 4 whose long side runs right and down (3, 4 per 5 pixels): clockwise on the
    # screen, so its angle is positive; then the same one described from another corner; then one
    # that stands upright, whose angle is -pi/2 and never +pi/2.
    along, across = np.array([6.0, 8.0]), np.array([-3.2, 2.4])
    start = np.array([20.0, 30.0])
    tilted = np.stack([start, start + along, start + along + across, start + across])
    upright = np.array([[0, 0], [0, 10], [-4, 10], [-4, 0]], float)
    boxes = corners_to_boxes(np.stack([tilted, np.roll(tilted, 1, axis=0), upright]))
    angle = np.arctan2(4, 3)
    np.testing.assert_allclose(boxes[0], (21.4, 35.2, 10, 4, angle))
    np.testing.assert_allclose(boxes[1], boxes[0])
    np.testing.assert_allclose(boxes[2], (-2, 5, 10, 4, -np.pi / 2))
