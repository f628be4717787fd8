"""The same seed gives the same scene: docs/conventions.md, "Randomness and side effects"."""

import numpy as np

from rsfuse.simulate import Acquisition, render, simulate_scene


def test_convention_same_seed_same_scene() -> None:
    def radar(seed: int) -> np.ndarray:
        scene = simulate_scene(96, gsd_m=2.0, seed=seed)
        return render(scene, "sar", acquisition=Acquisition(seed=seed)).data

    first, again, other = radar(3), radar(3), radar(4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
