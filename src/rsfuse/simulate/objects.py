"""Planes, ships and vehicles: their shapes, and the oriented boxes that are true of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.canvas import Canvas, Points, rectangle

# The names of DOTA, so that its tools read the truth as it is.
CLASS_NAMES = ("plane", "ship", "small-vehicle", "large-vehicle")

# A car park of white, silver, black and grey cars with a few coloured ones.
_CAR_PAINTS = np.array([0.24, 0.20, 0.20, 0.15, 0.07, 0.06, 0.05, 0.03])

_GLASS = 8


@dataclass(frozen=True)
class Objects:
    """Movable objects of a scene.

    Attributes:
        corners: (N, 4, 2) in scene pixels: rear left, rear right or front left of the heading
            first, then on, clockwise on the screen.
        labels: (N,) index into `CLASS_NAMES`.
    """

    corners: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(N, 5) oriented boxes (cx, cy, w, h, angle).

        `w` is the long side and `angle` its direction from +x towards +y, clockwise on the screen,
        in [-pi/2, pi/2).
        """
        return corners_to_boxes(self.corners)

    def names(self) -> list[str]:
        """The class name of each object."""
        return [CLASS_NAMES[label] for label in self.labels]


def corners_to_boxes(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 5) boxes of the rectangles (N, 4, 2); see `Objects.boxes`."""
    centre = corners.mean(axis=1)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]
    lengths = np.hypot(*first.T), np.hypot(*second.T)
    long_first = (lengths[0] >= lengths[1])[:, None]
    side = np.where(long_first, first, second)
    angle = np.arctan2(side[:, 1], side[:, 0])
    angle = (angle + np.pi / 2) % np.pi - np.pi / 2
    return np.column_stack((centre, np.maximum(*lengths), np.minimum(*lengths), angle))


class ObjectPainter:
    """Paints objects on a canvas and notes the box of each.

    Attributes:
        corners_m: Rectangles (4, 2) of what was painted, in metres.
        labels: Their classes.
    """

    def __init__(self, canvas: Canvas, rng: np.random.Generator) -> None:
        self._canvas = canvas
        self._rng = rng
        self.corners_m: list[Points] = []
        self.labels: list[int] = []

    def using(self, rng: np.random.Generator) -> "ObjectPainter":
        """A painter with another generator that notes into the same lists."""
        other = ObjectPainter(self._canvas, rng)
        other.corners_m, other.labels = self.corners_m, self.labels
        return other

    def objects(self, gsd_m: float) -> Objects:
        """What was painted, in pixels of the scene."""
        corners = np.array(self.corners_m).reshape(-1, 4, 2) / gsd_m
        return Objects(corners, np.array(self.labels, np.int64))

    def car(self, centre: Points, heading_rad: float, *, on: tuple[str, ...]) -> bool:
        """A car, if it stands wholly on the given materials."""
        length, width = self._rng.uniform(4.1, 4.9), self._rng.uniform(1.75, 1.95)
        box = rectangle((centre[0], centre[1]), length, width, heading_rad)
        if not self._canvas.covers(box, on):
            return False
        paint = int(self._rng.choice(len(_CAR_PAINTS), p=_CAR_PAINTS))
        self._canvas.fill(box, "vehicle", paint, height_m=1.0)
        along = np.array([np.cos(heading_rad), np.sin(heading_rad)])
        if self._canvas.step_m <= 0.3:
            cabin = centre - 0.1 * length * along
            glass = rectangle((cabin[0], cabin[1]), 0.58 * length, 0.84 * width, heading_rad)
            self._canvas.fill(glass, "vehicle", _GLASS, height_m=1.2)
            roof = rectangle((cabin[0], cabin[1]), 0.34 * length, 0.8 * width, heading_rad)
            self._canvas.fill(roof, "vehicle", paint, height_m=1.5)
        self._note(box, "small-vehicle")
        return True

    def lorry(self, centre: Points, heading_rad: float, *, on: tuple[str, ...]) -> bool:
        """A lorry with its trailer, if it stands wholly on the given materials."""
        length, width = self._rng.uniform(9.0, 16.0), 2.55
        box = rectangle((centre[0], centre[1]), length, width, heading_rad)
        if not self._canvas.covers(box, on):
            return False
        along = np.array([np.cos(heading_rad), np.sin(heading_rad)])
        self._canvas.fill(box, "vehicle", _GLASS, height_m=1.2)
        load = centre - along * 1.3
        paint = int(self._rng.choice([0, 0, 1, 7, 5, 4]))
        self._canvas.fill(
            rectangle((load[0], load[1]), length - 3.0, width, heading_rad),
            "vehicle",
            paint,
            height_m=3.8,
        )
        cab = centre + along * (length / 2 - 1.1)
        self._canvas.fill(
            rectangle((cab[0], cab[1]), 2.2, width, heading_rad),
            "vehicle",
            int(self._rng.choice([0, 4, 5, 6])),
            height_m=3.2,
        )
        self._note(box, "large-vehicle")
        return True

    def plane(self, centre: Points, heading_rad: float, length: float) -> bool:
        """An airliner, if its box holds nothing but the ground of an airfield."""
        span = length * 0.94
        box = rectangle((centre[0], centre[1]), length, span, heading_rad)
        if not self._canvas.covers(box, ("concrete", "asphalt", "road paint", "grass")):
            return False
        liner = _Local(self._canvas, centre, heading_rad)
        paint = int(self._rng.choice([0, 0, 0, 1]))
        body = 0.052 * length
        wing = np.array([[0.16, 0.0], [-0.075, 0.47], [-0.115, 0.47], [-0.04, 0.0]]) * length
        tail = np.array([[-0.40, 0.0], [-0.465, 0.17], [-0.495, 0.17], [-0.475, 0.0]]) * length
        for mirror in ((1, 1), (1, -1)):
            liner.fill(wing * mirror, "plane", 1, 0.10 * length)
            liner.fill(tail * mirror, "plane", 1, 0.15 * length)
            engine = np.array([[0.12, 0.13], [0.12, 0.165], [0.03, 0.165], [0.03, 0.13]]) * length
            liner.fill(engine * mirror, "plane", 1, 0.08 * length)
        t = np.linspace(-1, 1, 25)
        half = body * np.clip(
            np.minimum(1.0, np.sqrt(np.clip((1.0 - t) / 0.22, 0, 1)))
            * np.clip((t + 1.1) / 0.5, 0, 1),
            0.05,
            1,
        )
        hull = np.vstack(
            (
                np.column_stack((t * length / 2, half)),
                np.column_stack((t * length / 2, -half))[::-1],
            )
        )
        liner.fill(hull, "plane", paint, 0.14 * length)
        fin = (
            np.array([[-0.36, 0.008], [-0.485, 0.008], [-0.485, -0.008], [-0.36, -0.008]]) * length
        )
        liner.fill(fin, "plane", int(self._rng.choice([2, 3, 1])), 0.30 * length)
        self._note(box, "plane")
        return True

    def ship(self, centre: Points, heading_rad: float, length: float) -> bool:
        """A boat or a ship, if there is water under and around it."""
        beam = length / self._rng.uniform(5.6, 7.2) if length > 30 else length / 3.1
        box = rectangle((centre[0], centre[1]), length, beam, heading_rad)
        if not self._canvas.covers(box, ("water",)):
            return False
        hull = np.array(
            [
                [-0.5, -0.40],
                [-0.46, -0.5],
                [0.30, -0.5],
                [0.42, -0.30],
                [0.5, 0.0],
                [0.42, 0.30],
                [0.30, 0.5],
                [-0.46, 0.5],
                [-0.5, 0.40],
            ]
        ) * (length, beam)
        vessel = _Local(self._canvas, centre, heading_rad)
        if length < 30:
            vessel.fill(hull, "ship", 3, 1.2)
            if length > 4 * self._canvas.step_m:
                cockpit = _block(-0.22, 0.36, 0.62) * (length, beam)
                vessel.fill(cockpit, "ship", int(self._rng.choice([2, 8, 0])), 1.6)
        else:
            self._freighter(vessel, hull, length, beam)
        self._note(box, "ship")
        return True

    def _freighter(self, vessel: "_Local", hull: Points, length: float, beam: float) -> None:
        size = (length, beam)
        deck = 0.035 * length + 2
        vessel.fill(hull, "ship", int(self._rng.choice([0, 0, 1, 2])), deck)
        vessel.fill(_block(-0.40, 0.10, 0.86) * size, "ship", 3, deck + 0.07 * length + 4)
        vessel.fill(_block(-0.435, 0.035, 0.30) * size, "ship", 8, deck + 0.09 * length + 6)
        kind = self._rng.random()
        bays = max(3, int(0.70 * length / 13))
        for k in range(bays):
            x = -0.30 + 0.68 * (k + 0.5) / bays
            if kind < 0.5:  # containers
                for row in np.linspace(-0.40, 0.40, max(2, int(beam / 5))):
                    if self._rng.random() < 0.9:
                        stack = _block(x, 0.62 / bays, 0.72 / max(2, int(beam / 5)), row)
                        vessel.fill(
                            stack * size,
                            "ship",
                            int(self._rng.choice([4, 5, 6, 7, 2, 3, 0])),
                            deck + 2.6 * float(self._rng.integers(1, 5)),
                        )
            elif kind < 0.8:  # hatches of a bulk carrier
                vessel.fill(_block(x, 0.5 / bays, 0.62) * size, "ship", 2, deck + 2.0)
        if kind >= 0.8:  # the pipes of a tanker
            vessel.fill(_block(0.05, 0.62, 0.07) * size, "ship", 2, deck + 1.5)
            vessel.fill(_block(0.03, 0.02, 0.66) * size, "ship", 2, deck + 3.0)

    def _note(self, box: Points, name: str) -> None:
        self.corners_m.append(box)
        self.labels.append(CLASS_NAMES.index(name))


class _Local:
    """A canvas seen from an object: x along its heading, y to its right."""

    def __init__(self, canvas: Canvas, centre: Points, heading_rad: float) -> None:
        self._canvas = canvas
        self._centre = centre
        c, s = np.cos(heading_rad), np.sin(heading_rad)
        self._turn = np.array([[c, s], [-s, c]])

    def fill(self, polygon: Points, material: str, variant: int, height_m: float) -> None:
        moved = polygon @ self._turn + self._centre
        self._canvas.fill(moved, material, variant, height_m=height_m)


def _block(x: float, length: float, width: float, y: float = 0.0) -> Points:
    """A rectangle in units of an object's length and width."""
    half = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    return np.asarray(half * (length, width) + (x, y))
