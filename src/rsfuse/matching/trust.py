"""Trust: the probability that a result is right, and what follows from it.

Evidence that a wrong placement does not have: more tie points agree than chance allows, no other
placement of the same pair (the null distribution that the pair brings along) is supported as well,
the global search liked it better than any other, and the whole images correlate there as they do
nowhere around it.

The weights are those of a logistic regression on the development pairs, true and constructed
wrong, by `benchmarks/match_calibration.py`; `docs/results.md` shows how well they hold.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Status = Literal["ok", "weak", "refused"]

# Of each method: intercept and weights of the features of `pair_features`.
PAIR_WEIGHTS = {
    "classic": (-17.319, 0.0, 6.778, 5.13, 10.344),
    "cstf": (-22.573, 3.039, 0.0, 5.834, 15.688),
}
# Of each method: intercept and weights of the features of `tie_point_features`.
TIE_POINT_WEIGHTS = {
    "classic": (1.389, 0.4, 0.222, -1.068),
    "cstf": (1.74, 0.521, 0.29, -1.388),
}
# Probability that two images placed by what their files say show the same ground there, from
# `overlay.Correlation`; by benchmarks/presence.py on SRIF, s1s2 and simulated scenes by day and
# night: 259 of 261 true pairs and 3 of 521 strangers are beyond even odds.
PRESENCE_WEIGHTS = (-15.014, 3.185)

OK_CONFIDENCE = 0.7
WEAK_CONFIDENCE = 0.1
FEW_TIE_POINTS = 12

# The standard deviation of a tie point: so much of the scatter of its pair, and beside it what the
# tie points of a pair are off by together, so that their scatter does not show it: relief, how
# sensors see edges, and the error of the truth itself, in pixels of the lattice they are measured
# on. With both the 90 % ellipses hold 90 % of the right tie points of the development pairs
# (docs/results.md).
SCATTER_SHARE = 0.9
SHARED_PX = 0.7


class Evidence(NamedTuple):
    """What speaks for a placement.

    Attributes:
        agreement: -log10 of the expected number of equally large agreements by chance.
        share: Share of the measured tie points that agree.
        runner_up: Agreement of the best placement elsewhere.
        measured: Tie points measured.
        kept: Tie points that the transform rests on.
        standing_out: How far the correlation of the whole images stands out of that at wrong
            shifts, see `overlay.Correlation`.
        search_margin: Logarithm of the score that the global search gave this placement over that
            of the best one elsewhere; 0 where there was no other.
    """

    agreement: float
    share: float
    runner_up: float
    measured: int
    kept: int
    standing_out: float
    search_margin: float = 0.0


def pair_features(evidence: Evidence) -> FloatArray:
    """Features of a result: (4,)."""
    margin = np.log1p(max(evidence.agreement, 0.0)) - np.log1p(max(evidence.runner_up, 0.0))
    return np.array(
        [
            np.log1p(min(max(evidence.agreement, 0.0), 200.0)),
            np.clip(margin, -2, 3),
            np.log1p(np.clip(evidence.standing_out, 0.0, 20.0)),
            np.clip(evidence.search_margin, -0.5, 1.0),
        ]
    )


def pair_confidence(evidence: Evidence, method: str = "classic") -> float:
    """Probability that the transform is right to within a few pixels."""
    weights = np.array(PAIR_WEIGHTS[method])
    return float(_logistic(np.append(1.0, pair_features(evidence)) @ weights))


def presence(standing_out: float) -> float:
    """Probability that both images show the same ground where their files say."""
    level, slope = PRESENCE_WEIGHTS
    return float(_logistic(level + slope * standing_out))


def tie_point_features(
    probability: FloatArray, height: FloatArray, residual_px: FloatArray
) -> FloatArray:
    """Features of tie points: (N, 3)."""
    p = np.clip(probability, 1e-4, 1 - 1e-4)
    return np.stack([np.log(p / (1 - p)), height, np.log(residual_px + 0.25)], axis=1)


def tie_point_probability(
    probability: FloatArray,
    height: FloatArray,
    residual_px: FloatArray,
    *,
    confidence: float,
    method: str = "classic",
) -> FloatArray:
    """Probability that each tie point is right to within 3 px.

    Args:
        probability: (N,) SoftMax mass of the peak.
        height: (N,) peak height in standard deviations.
        residual_px: (N,) distance to the fitted transform.
        confidence: Of the whole result: a tie point of a wrong transform is wrong.
        method: What measured.
    """
    features = tie_point_features(probability, height, residual_px)
    weights = np.array(TIE_POINT_WEIGHTS[method])
    return np.asarray(confidence * _logistic(weights[0] + features @ weights[1:]))


def _logistic(value: npt.ArrayLike) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(value, -40, 40))))
