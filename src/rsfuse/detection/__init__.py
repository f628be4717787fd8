"""Oriented object detection: formats, scores, the detector, whole scenes."""
