"""OpenCV's SIFT, ORB and AKAZE: ratio 0.9, mutual, affine by RANSAC at 3 px. Not OpenCV 5."""

import sys

import cv2
import numpy as np
from serve import serve, to_byte

KEYPOINTS = 3000
RATIO = 0.9
RANSAC_PX = 3.0
FEWEST_INLIERS = 4

DETECTORS = {
    "sift": lambda: (cv2.SIFT_create(KEYPOINTS), cv2.NORM_L2),
    "orb": lambda: (cv2.ORB_create(KEYPOINTS), cv2.NORM_HAMMING),
    "akaze": lambda: (cv2.AKAZE_create(), cv2.NORM_HAMMING),
}


def best(descriptors0, descriptors1, norm):
    """Index of the nearest neighbour of each descriptor where it passes the ratio test."""
    pairs = cv2.BFMatcher(norm).knnMatch(descriptors0, descriptors1, k=2)
    return {
        pair[0].queryIdx: pair[0].trainIdx
        for pair in pairs
        if len(pair) == 2 and pair[0].distance < RATIO * pair[1].distance
    }


def matcher(name):
    """The matching function of a detector."""
    detector, norm = DETECTORS[name]()

    def match(image0, image1):
        keypoints0, descriptors0 = detector.detectAndCompute(to_byte(image0), None)
        keypoints1, descriptors1 = detector.detectAndCompute(to_byte(image1), None)
        if descriptors0 is None or descriptors1 is None:
            return {"matrix": None}
        forward = best(descriptors0, descriptors1, norm)
        backward = best(descriptors1, descriptors0, norm)
        mutual = [(i, j) for i, j in forward.items() if backward.get(j) == i]
        # OpenCV counts from the centre of the first pixel.
        points0 = np.array([keypoints0[i].pt for i, _ in mutual]).reshape(-1, 2) + 0.5
        points1 = np.array([keypoints1[j].pt for _, j in mutual]).reshape(-1, 2) + 0.5
        matrix = None
        if len(mutual) >= FEWEST_INLIERS:
            affine, inliers = cv2.estimateAffine2D(
                points0, points1, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_PX
            )
            if affine is not None and inliers.sum() >= FEWEST_INLIERS:
                matrix = np.vstack([affine, [0, 0, 1]])
        return {"matrix": matrix, "points0": points0, "points1": points1}

    return match


if __name__ == "__main__":
    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)
    serve(matcher(sys.argv[1]))
