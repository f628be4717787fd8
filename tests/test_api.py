"""Public names: what is promised exists, and nothing appears or disappears unnoticed."""

import importlib

import pytest

import rsfuse

# What a user may import. A name leaves it only with an entry under "Removed" in CHANGELOG.md.
PUBLIC = {
    "rsfuse": {
        "Alignment",
        "ClassMap",
        "Detections",
        "MatchResult",
        "Raster",
        "RsfuseError",
        "RunRecord",
        "__version__",
        "align",
        "classify",
        "detect",
        "match",
        "open_raster",
    },
    "rsfuse.errors": {
        "BandError",
        "ConfigError",
        "GridError",
        "InputError",
        "MissingCrsError",
        "NoOverlapError",
        "OutputError",
        "RasterError",
        "RsfuseError",
    },
    "rsfuse.runs": {
        "RunRecord",
        "atomic_path",
        "distinct_outputs",
        "exchange_folders",
        "is_run_folder",
        "parse_json",
        "plain",
        "prepare_output",
        "read_json",
        "remove_run",
        "staged",
        "text_table",
        "utc_now",
        "write_json",
    },
    "rsfuse.geo.grid": {
        "Window",
        "gsd_m",
        "integer_ratio",
        "overlap",
        "parse_memory",
        "pixel_geobox",
        "pixel_mapping",
        "same_grid",
        "window_geobox",
    },
    "rsfuse.geo.raster": {"Raster", "RasterSource", "open_raster"},
    "rsfuse.geo.tiles": {"Tile", "TilePlan", "plan_tiles", "run_tiles"},
    "rsfuse.geo.warp": {"read_mapped", "warp_raster"},
    "rsfuse.geo.write": {
        "rewrite_geotransform",
        "write_cog",
        "write_gcp_vrt",
        "write_points",
        "write_polygons",
        "write_qgis_points",
    },
}


def test_top_level_names_equal_the_list() -> None:
    assert set(rsfuse.__all__) == PUBLIC["rsfuse"]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in sorted(PUBLIC[module]) if not hasattr(found, name)] == []


@pytest.mark.parametrize("module", ["rsfuse.errors", "rsfuse.runs"])
def test_base_modules_define_nothing_else_in_public(module: str) -> None:
    found = importlib.import_module(module)
    defined = {
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    }
    assert defined == PUBLIC[module]


def test_names_are_listed_before_they_are_resolved() -> None:
    assert set(rsfuse.__all__) <= set(dir(rsfuse))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="matcher"):
        _ = rsfuse.matcher


def test_match_is_the_function_of_the_pipeline() -> None:
    assert rsfuse.match is importlib.import_module("rsfuse.matching.predict").match


def test_every_public_object_is_documented() -> None:
    undocumented = [
        f"{module}.{name}"
        for module, names in PUBLIC.items()
        for name in sorted(names)
        if name != "__version__"
        and not (getattr(importlib.import_module(module), name).__doc__ or "").strip()
    ]
    assert undocumented == []
