"""Files, grids, masks, tiles, warps and writers. No tensors, no task.

`raster` is the one door for files, `grid` relates pixels of two rasters, `warp` resamples, `tiles`
is the one loop over a scene, `write` puts results where a GIS opens them.
"""
