"""Fit the weights of `rsfuse.matching.trust` on true and constructed wrong pairs.

    python benchmarks/match_calibration.py DATASET... --method cstf --limit 60 --workers 2 \
        -o out.json

The cases are those of the protocol `trust`: true pairs, pairs of strangers, and pairs cut so that
nothing is shared. The figures printed are cross-validated by pair. The features are stored;
`--from` fits again without matching.
"""

import argparse
import functools
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

# Pairs of "strangers" that show the same ground all the same: the protocol draws them by number.
SAME_GROUND = {"srif/Optical-Infrared/151#unrelated", "srif/Nighttime/35#unrelated"}


def features_of(case, method="classic", weights=None):
    """Features and outcome of one case; None where the matcher found no placement at all."""
    import cv2
    import torch

    from rsfuse.matching import trust
    from rsfuse.matching.predict import match
    from rsfuse.matching.protocols import Answer, measure_trust

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    results = []

    def matcher(image0, image1):
        result = match(image0, image1, threads=1, method=method, weights=weights)
        results.append(result)
        if result.transform is None:
            return Answer(None, status="refused")
        ties = result.tie_points
        # Judged whatever its status: the weights must not depend on those in use.
        return Answer(
            result.transform.apply, ties.xy0, ties.xy1, ties.probability, "ok", result.confidence
        )

    record = measure_trust(case, matcher)
    result = results[0]
    found = result.diagnostics.get("evidence")
    if not isinstance(found, dict):
        return None
    evidence = trust.Evidence(**found)
    right = bool(record["correct"])
    ties = []
    if right:
        # Without the factor that the whole result contributes, on the scale of logits.
        p = np.clip(np.array(record["tie_probability"]) / max(result.confidence, 1e-6), 1e-6, 1)
        p = np.minimum(p, 1 - 1e-6)
        ties = np.column_stack([np.log(p / (1 - p)), record["tie_correct"]])[::3].tolist()
    return {
        "id": case.id,
        "group": case.pair.group,
        "kind": case.kind,
        "right": right,
        "grid_error_px": record["grid_error_px"],
        "evidence": evidence._asdict(),
        "ties": ties,
    }


def logistic_fit(features, outcome, *, ridge=1e-2, nonnegative=False):
    """Weights of a logistic regression, intercept first.

    Args:
        features: (N, P).
        outcome: (N,) 0 or 1.
        ridge: Penalty of squared weights.
        nonnegative: No feature may speak against the outcome.
    """
    design = np.column_stack([np.ones(len(features)), features])

    def loss(weights):
        logit = np.clip(design @ weights, -40, 40)
        p = 1 / (1 + np.exp(-logit))
        value = (np.logaddexp(0, logit) - outcome * logit).sum() + ridge / 2 * (
            weights[1:] @ weights[1:]
        )
        return value, design.T @ (p - outcome) + ridge * np.r_[0.0, weights[1:]]

    start = np.zeros(design.shape[1])
    bounds = [(None, None)] + [(0.0 if nonnegative else None, None)] * (len(start) - 1)
    options = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-8}
    return minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options).x


def probability(weights, features):
    """Of a logistic regression."""
    design = np.column_stack([np.ones(len(features)), features])
    return 1 / (1 + np.exp(-np.clip(design @ weights, -40, 40)))


def cross_validated(features, outcome, groups, *, folds=5, nonnegative=False):
    """Probabilities of cases by fits that did not see their pair."""
    names = sorted(set(groups))
    fold = {name: k % folds for k, name in enumerate(np.random.default_rng(0).permutation(names))}
    number = np.array([fold[g] for g in groups])
    result = np.zeros(len(outcome))
    for k in range(folds):
        held = number == k
        weights = logistic_fit(features[~held], outcome[~held], nonnegative=nonnegative)
        result[held] = probability(weights, features[held])
    return result


def main():
    """Collect, fit, print."""
    from rsfuse.matching import metrics, trust
    from rsfuse.matching.data import read_pairs
    from rsfuse.matching.protocols import trust_cases

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="*", type=Path)
    parser.add_argument("--from", dest="stored", type=Path, help="rows of an earlier run")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--method", choices=("classic", "cstf"), default="classic")
    parser.add_argument("--weights", help="bundle of a CSTF matcher")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    cases = [
        case
        for dataset in arguments.datasets
        for case in trust_cases(read_pairs(dataset, limit=arguments.limit), 1, False)
        if case.id not in SAME_GROUND
    ]
    if arguments.stored:
        stored = json.loads(arguments.stored.read_text(encoding="utf-8"))
        rows, kinds = stored["rows"], stored["kinds"]
        old = np.array(stored["tie_point_weights_then"])
    else:
        kinds = [case.kind for case in cases]
        old = np.array(trust.TIE_POINT_WEIGHTS[arguments.method])
        work = functools.partial(features_of, method=arguments.method, weights=arguments.weights)
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            rows = [row for row in pool.map(work, cases, chunksize=1) if row is not None]
    outcome = np.array([r["right"] for r in rows], float)
    features = np.array([trust.pair_features(trust.Evidence(**r["evidence"])) for r in rows])
    # Evidence never speaks against a placement, as one of two features that say the same may.
    pair_weights = logistic_fit(features, outcome, nonnegative=True)
    ties = np.array([t for r in rows for t in r["ties"]])
    tie_weights = logistic_fit(ties[:, :-1], ties[:, -1])
    # A line on the old logit is a line on its features.
    rescaled = tie_weights[1] * old + tie_weights[0] * np.eye(len(old))[0]
    names = [r["id"].split("#")[0] for r in rows]
    p = cross_validated(features, outcome, names, nonnegative=True)
    ties_of = [name for name, r in zip(names, rows, strict=True) for _ in r["ties"]]
    q = cross_validated(ties[:, :-1], ties[:, -1], ties_of)
    wrong = [kind for kind in kinds if kind != "true"]
    accepted = [r for r, v in zip(rows, p, strict=True) if v >= trust.OK_CONFIDENCE]
    summary = {
        "cases": len(kinds),
        "placements": len(rows),
        "right": int(outcome.sum()),
        "pair_weights": [round(float(w), 3) for w in pair_weights],
        "tie_point_weights": [round(float(w), 3) for w in rescaled],
        "ok_of_true_pairs": sum(r["kind"] == "true" for r in accepted) / (len(kinds) - len(wrong)),
        "wrong_among_ok": sum(not r["right"] for r in accepted),
        "ok_of_strangers": sum(r["kind"] != "true" for r in accepted) / len(wrong),
        "pair_auroc": metrics.auroc(p, outcome.astype(bool)),
        "pair_ece": metrics.expected_calibration_error(p, outcome.astype(bool)),
        "tie_auroc": metrics.auroc(q, ties[:, -1].astype(bool)),
        "tie_ece": metrics.expected_calibration_error(q, ties[:, -1].astype(bool)),
        "tie_right": float(ties[:, -1].mean()),
    }
    print(json.dumps(summary, indent=2))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps(
            {**summary, "tie_point_weights_then": old.tolist(), "kinds": kinds, "rows": rows}
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
