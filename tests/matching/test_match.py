"""`rsfuse.match` on arrays with a known answer."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning

import rsfuse
from rsfuse.errors import ConfigError, InputError
from rsfuse.geo.grid import pixel_mapping
from rsfuse.geo.raster import open_raster
from rsfuse.geo.warp import read_mapped
from rsfuse.matching import pipeline, predict, refine
from rsfuse.matching.metrics import grid_errors
from rsfuse.matching.reader import pair_reader
from rsfuse.matching.robust import Fit
from rsfuse.matching.trust import SHARED_PX, Evidence
from rsfuse.ops.geometry2d import Transform, for_opencv


@pytest.fixture(scope="module")
def ground() -> np.ndarray:
    """Fields, roads and blobs: structure at several scales, without symmetry."""
    rng = np.random.default_rng(3)
    image = np.zeros((420, 420), np.float32)
    for _ in range(90):
        x, y = rng.integers(0, 420, 2)
        w, h = rng.integers(15, 90, 2)
        box = cv2.boxPoints(((float(x), float(y)), (float(w), float(h)), float(rng.uniform(0, 90))))
        cv2.fillPoly(image, [box.astype(np.int32)], float(rng.uniform(0.1, 1.0)))
    return cv2.GaussianBlur(image, (0, 0), 1.0) + 0.01 * rng.normal(size=image.shape).astype("f4")


def moved(image: np.ndarray, angle_deg: float, scale: float, size: int) -> tuple:
    """A turned and scaled view, and the matrix from the image to it in the corner convention."""
    a = np.deg2rad(angle_deg)
    c, s = scale * np.cos(a), scale * np.sin(a)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    middle = image.shape[0] / 2
    matrix[:2, 2] = size / 2 - matrix[:2, :2] @ [middle + 6.3, middle - 4.2]
    view = cv2.warpAffine(image, for_opencv(matrix)[:2], (size, size), flags=cv2.INTER_CUBIC)
    return view, matrix


@pytest.mark.parametrize(("angle_deg", "scale"), [(0.0, 1.0), (30.0, 1.0), (-115.0, 0.8)])
def test_a_turned_negative_is_found_to_a_fraction_of_a_pixel(
    ground: np.ndarray, angle_deg: float, scale: float
) -> None:
    view, truth = moved(ground, angle_deg, scale, 240)
    result = rsfuse.match(ground, 1.0 - np.abs(view) ** 1.5, threads=1)
    assert result.status == "ok"
    assert result.transform is not None
    errors = grid_errors(result.transform.apply, truth, (420, 420), (240, 240))
    assert errors.mean() < 0.4
    assert result.confidence > 0.7
    # Of the coarser image, in pixels of which tie points are measured: here the query.
    assert result.tie_points.sigma_px.min() >= SHARED_PX - 0.01
    assert result.tie_points.sigma_px.max() < 1.5 * SHARED_PX
    assert "ok" in str(result)
    assert "tie points" in str(result)


def test_images_of_nothing_in_common_are_never_ok() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        a, b = (cv2.GaussianBlur(rng.normal(size=(200, 200)), (0, 0), 2) for _ in range(2))
        result = rsfuse.match(a, b, threads=1)
        assert result.status == "refused"
        assert result.reasons


def test_the_same_input_gives_the_same_answer(ground: np.ndarray) -> None:
    view, _ = moved(ground, 10.0, 1.0, 240)
    a, b = (rsfuse.match(ground, view, threads=n) for n in (1, 2))
    assert a.transform is not None
    assert b.transform is not None
    np.testing.assert_array_equal(a.transform.base, b.transform.base)
    assert a.confidence == b.confidence


def test_a_colour_table_is_seen_by_its_colours(ground: np.ndarray, tmp_path: Path) -> None:
    view, truth = moved(ground, 25.0, 1.0, 240)
    step = np.clip(np.round(view / view.max() * 15), 0, 15).astype(np.uint8)
    numbers = np.random.default_rng(1).permutation(16).astype(np.uint8)
    path = tmp_path / "map.tif"
    profile = {"driver": "GTiff", "width": 240, "height": 240, "count": 1, "dtype": "uint8"}
    grey = {int(numbers[k]): (17 * k, 17 * k, 17 * k, 255) for k in range(16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(numbers[step], 1)
            file.write_colormap(1, grey)
    result = rsfuse.match(ground, path, threads=1)
    assert result.status == "ok"
    assert result.transform is not None
    errors = grid_errors(result.transform.apply, truth, (420, 420), (240, 240))
    assert errors.mean() < 0.4
    assert result.query.bands == ("band1",)  # registered.tif keeps the numbers
    by_numbers = rsfuse.match(ground, numbers[step], threads=1).held_out_px
    assert by_numbers is not None
    assert result.held_out_px is not None
    assert by_numbers["median"] > 2 * result.held_out_px["median"]


def test_a_prior_keeps_the_search_near(ground: np.ndarray) -> None:
    view, truth = moved(ground, 80.0, 1.0, 240)
    guess = truth.copy()
    guess[:2, 2] += [7.0, -5.0]
    result = rsfuse.match(ground, view, prior=guess, threads=1)
    assert result.transform is not None
    errors = grid_errors(result.transform.apply, truth, (420, 420), (240, 240))
    assert errors.mean() < 0.4


def test_an_unknown_model_is_an_error(ground: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="afine"):
        rsfuse.match(ground, ground, model="afine")


@pytest.mark.parametrize("prior", [[1, 2, 3], np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_a_prior_that_is_no_transform_is_an_error(ground: np.ndarray, prior: object) -> None:
    with pytest.raises(ConfigError, match="prior"):
        rsfuse.match(ground, ground, prior=prior)


def test_a_negative_seed_is_an_error(ground: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="-1"):
        rsfuse.match(ground, ground, seed=-1)


def test_saving_again_leaves_nothing_of_the_run_before(ground: np.ndarray, tmp_path: Path) -> None:
    view, _ = moved(ground, 0.0, 1.0, 300)
    rsfuse.match(ground, view, threads=1).save(tmp_path / "run")
    assert (tmp_path / "run" / "registered.tif").exists()
    noise = np.random.default_rng(0).normal(size=(2, 200, 200))
    refused = rsfuse.match(*noise, threads=1)
    assert refused.status == "refused"
    refused.save(tmp_path / "run")
    assert not (tmp_path / "run" / "registered.tif").exists()
    assert (tmp_path / "run" / "run.json").exists()
    with pytest.raises(InputError, match="array"):
        refused.save(tmp_path / "run", resample=False)
    assert (tmp_path / "run" / "run.json").exists()


def test_errors_of_the_transform_are_honest(ground: np.ndarray) -> None:
    view, _ = moved(ground, 5.0, 1.0, 300)
    rng = np.random.default_rng(1)
    noisy = (view + 0.15 * rng.normal(size=view.shape)).astype(np.float32)
    result = rsfuse.match(ground, noisy, model="similarity", threads=1)
    assert result.held_out_px is not None
    assert result.transform is not None
    assert result.held_out_px["median"] < 1.0
    spread = result.standard_error_px([[210.0, 210.0]])[0]
    assert 0 < spread < 0.2


@pytest.mark.parametrize(
    ("model", "unexplained", "bare", "doubted", "code"),
    [
        ("affine", 0.0, 0.0, None, None),
        ("rigid", 0.0, 0.0, ("affine", 0.3), "doubtful_model"),
        ("rigid", 0.3, 0.0, None, "unmodelled_deformation"),
        ("smooth", 0.0, 0.3, None, "unsupported_field"),
    ],
)
def test_a_doubt_makes_a_result_weak_and_is_named(
    model: str,
    unexplained: float,
    bare: float,
    doubted: tuple[str, float] | None,
    code: str | None,
) -> None:
    kept = np.arange(400) < 200
    zero = np.zeros(400)
    fit = Fit(Transform(model, np.eye(3)), kept, np.zeros((400, 2)), zero, 1.0, np.eye(6), {})
    evidence = Evidence(10.0, 0.5, 1.0, 400, 200, 15.0)
    status, reasons = predict.judge(0.99, evidence, fit, 1.0, unexplained, bare, doubted)
    assert status == ("ok" if code is None else "weak")
    assert [reason.code for reason in reasons] == ([] if code is None else [code])


@pytest.mark.parametrize(
    ("asked", "model", "share", "agreement", "fitted", "is_doubted"),
    [
        ("auto", "affine", 0.45, 10.0, "rigid", True),
        ("auto", "smooth", 0.45, 10.0, "smooth", True),
        ("auto", "smooth", 0.3, 10.0, "rigid", True),
        ("auto", "affine", 0.45, 100.0, "affine", False),
        ("auto", "affine", 0.55, 10.0, "affine", False),
        ("auto", "similarity", 0.45, 10.0, "similarity", False),
        ("affine", "affine", 0.45, 10.0, "affine", False),
    ],
)
def test_a_free_model_that_few_agree_with_gives_way_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    model: str,
    share: float,
    agreement: float,
    fitted: str,
    is_doubted: bool,
) -> None:
    nothing = np.zeros((400, 2))
    column = np.zeros(400)
    rows = pipeline.join_none()._replace(xy=nothing)

    def follow(*given: object, **_: object) -> refine.Refined:
        found = "rigid" if given[3] == refine.STIFF else model
        kept = np.arange(400) < 400 * share
        fit = Fit(Transform(found, np.eye(3)), kept, nothing, column, 1.0, np.eye(6), {})
        return refine.Refined(rows, fit, agreement)

    monkeypatch.setattr(refine, "_follow", follow)
    monkeypatch.setattr(refine, "covered", lambda pair, matrix: None)
    monkeypatch.setattr(refine, "_settled", lambda pair, refined, area: refined)
    refined = refine.refine(None, None, np.eye(3), model=asked)  # type: ignore[arg-type]
    assert refined.fit is not None
    assert refined.fit.transform.model == fitted
    assert refined.doubted == ((model, share) if is_doubted else None)


@pytest.mark.parametrize(("scatter_px", "least", "most"), [(0.1, 0.0, 0.05), (1.0, 0.4, 0.6)])
def test_whole_images_count_the_more_the_more_tie_points_scatter(
    ground: np.ndarray, scatter_px: float, least: float, most: float
) -> None:
    there = np.array([[1, 0, 1.5], [0, 1, -1.0]])
    moved = cv2.warpAffine(ground, there, (420, 420), flags=cv2.INTER_CUBIC, borderMode=2)
    pair, _, _ = pair_reader(open_raster(ground), open_raster(moved))
    assert pair is not None
    zero = np.zeros((9, 2))
    kept, none = np.ones(9, bool), np.zeros(9)
    fit = Fit(Transform("shift", np.eye(3)), kept, zero, none, scatter_px, np.eye(2), {})
    rows = pipeline.join_none()._replace(xy=zero, placed=zero)
    settled = refine._settled(pair, refine.Refined(rows, fit, 10.0), (0.0, 0.0, 420.0, 420.0))
    assert settled.fit is not None
    assert settled.standing_out > 8
    share = settled.fit.transform.base[:2, 2] / there[:, 2]
    assert ((least <= share) & (share <= most)).all()
    np.testing.assert_allclose(settled.fit.residual, -settled.fit.transform.base[:2, 2] + zero)


def test_a_strong_bend_is_followed_and_where_nothing_carries_it_said() -> None:
    side = 640
    rng = np.random.default_rng(8)
    image = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 2.0)
    y, x = (np.mgrid[0:side, 0:side] + 0.5).astype(np.float32)
    bend = 16 * np.stack([np.sin(y / 90), np.sin(x / 100)])  # of what lies at a query pixel
    query = cv2.remap(image, x + bend[0] - 0.5, y + bend[1] - 0.5, cv2.INTER_CUBIC)
    inside = slice(40, -40, 20)
    at = np.stack([x[inside, inside].ravel(), y[inside, inside].ravel()], axis=1).astype(float)
    lies = at + bend[:, inside, inside].reshape(2, -1).T
    whole = rsfuse.match(image, query, upright=True, threads=1)
    assert whole.status == "ok"
    assert whole.transform is not None
    assert whole.transform.model == "smooth"
    assert np.hypot(*(whole.transform.apply(lies) - at).T).mean() < 0.5
    other = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 2.0)
    query[:, 420:] = other[:, 420:]
    part = rsfuse.match(image, query, upright=True, threads=1)
    assert part.status == "weak"
    assert "unsupported_field" in {reason.code for reason in part.reasons}


def test_a_query_that_covers_a_fifth_of_the_reference_is_found() -> None:
    rng = np.random.default_rng(8)
    grains = [cv2.GaussianBlur(rng.normal(size=(900, 900)), (0, 0), s) * s for s in (2, 5, 12)]
    large = sum(grains).astype(np.float32)
    result = rsfuse.match(large, -large[520:700, 130:310], threads=1)
    assert result.status == "ok"
    assert result.transform is not None
    np.testing.assert_allclose(result.transform.apply([[220, 610]]), [[90, 90]], atol=0.3)


def test_rasters_of_two_reference_systems_are_matched_and_written(
    ground: np.ndarray, tmp_path: Path
) -> None:
    """A georeference that bends: what is found is a field, whatever model was fitted."""
    here = open_raster(ground, crs="EPSG:32633", transform=Affine(60, 0, 6e5, 0, -60, 6e6))
    to_map = Transformer.from_crs(32633, 4326, always_xy=True)
    (west, east), (south, north) = to_map.transform([603000, 621000], [5977000, 5997000])
    step = (east - west) / 300, (north - south) / 330
    grid = Affine(step[0], 0, west, 0, -step[1], north)
    truth = pixel_mapping(GeoBox((330, 300), grid, "EPSG:4326"), here.geobox)
    view = read_mapped(here, (330, 300), truth).data[0]
    off = open_raster(-view, crs="EPSG:4326", transform=grid @ Affine.translation(3, -2))
    result = rsfuse.match(here, off, threads=1)
    assert result.status == "ok"
    assert result.transform is not None
    xy = np.random.default_rng(0).uniform(60, 240, (50, 2))
    np.testing.assert_allclose(result.transform.apply(truth(xy)), xy, atol=0.3)
    assert 0 < result.standard_error_px(truth(xy)).max() < 0.3
    result.save(tmp_path / "run")
    stated = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["shift_px"]
    np.testing.assert_allclose(stated, [3, -2], atol=0.5)


def test_an_image_of_small_numbers_is_not_flat(ground: np.ndarray) -> None:
    result = rsfuse.match(1e-7 * ground, ground[60:360, 60:360], threads=1)
    assert result.status == "ok"
    flat = rsfuse.match(np.full_like(ground, 7.0), ground, threads=1)
    assert [reason.code for reason in flat.reasons] == ["no_structure"]
