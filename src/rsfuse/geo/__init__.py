"""Pixels and the Earth: files, grids, tiles, resampling. Never torch."""
