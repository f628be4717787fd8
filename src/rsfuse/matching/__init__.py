"""Cross-modal image matching: the transform between two images of the same ground."""
