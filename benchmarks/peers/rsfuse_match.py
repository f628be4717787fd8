"""rsfuse's own answer through the same door as its peers."""

import numpy as np
from serve import serve

from rsfuse.matching.evaluate import product_matcher

LATTICE = 33


def match(image0, image1):
    """The product's answer as JSON can hold it."""
    answer = product_matcher(image0, image1)
    reply = {
        "matrix": None,
        "points0": answer.points0,
        "points1": answer.points1,
        "probabilities": answer.probabilities,
        "status": answer.status,
        "confidence": answer.confidence,
    }
    if not answer.is_answer:
        return reply
    if not callable(answer.transform):
        return {**reply, "matrix": answer.transform}
    # A smooth field has no matrix; it travels as its values on a lattice over the reference.
    h, w = image0.shape[1:]
    xs, ys = np.linspace(0, w, LATTICE), np.linspace(0, h, LATTICE)
    x, y = np.meshgrid(xs, ys)
    there = answer.transform(np.column_stack([x.ravel(), y.ravel()])).reshape(LATTICE, LATTICE, 2)
    return {**reply, "lattice": {"xs": xs, "ys": ys, "x": there[..., 0], "y": there[..., 1]}}


if __name__ == "__main__":
    serve(match)
