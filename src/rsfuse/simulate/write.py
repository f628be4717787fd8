"""A scene as files: images that any GIS opens, and the truth beside them."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsfuse.errors import InputError
from rsfuse.geo.raster import Raster
from rsfuse.geo.write import write_cog, write_polygons
from rsfuse.runs import atomic_path, write_json
from rsfuse.simulate.materials import LAND_COVER
from rsfuse.simulate.objects import CLASS_NAMES, Objects
from rsfuse.simulate.render import MODALITIES, Acquisition, divided, render
from rsfuse.simulate.scene import Scene
from rsfuse.simulate.warp import Displacement, Warp

DEFAULT_QUERIES = ("sar", "thermal", "map")

_SCENE = "scene.json"
_DISPLACEMENT = "displacement.tif"

# Labels that no pixel has: class ids start at 0.
_NO_LABEL = 255


@dataclass(frozen=True)
class WrittenScene:
    """Where the files of a scene lie.

    Attributes:
        folder: All paths are in it.
        images: Modality -> path.
        references: Modalities on the grid of the scene.
        queries: Modalities seen through the warp.
        truth: Name of a truth -> path.
    """

    folder: Path
    images: dict[str, Path]
    references: tuple[str, ...]
    queries: tuple[str, ...]
    truth: dict[str, Path]

    @property
    def outputs(self) -> dict[str, Any]:
        """Every file, relative to the folder, as a run record names its products."""

        def relative(path: Path) -> str:
            return path.relative_to(self.folder).as_posix()

        return {
            "scene": _SCENE,
            **{name: relative(path) for name, path in self.images.items()},
            "truth": {name: relative(path) for name, path in self.truth.items()},
            "boxes": {name: f"truth/labelTxt/{name}.txt" for name in self.images},
        }


def write_scene(
    folder: str | Path,
    scene: Scene,
    *,
    modalities: Collection[str] = MODALITIES,
    warp: Warp | None = None,
    queries: Collection[str] = DEFAULT_QUERIES,
    acquisition: Acquisition | None = None,
    progress: Callable[[str], None] | None = None,
) -> WrittenScene:
    """Write the images of a scene and its truth.

    The folder receives one GeoTIFF per modality; `truth/transform.json` (from pixels of the scene
    to pixels of the queries), `truth/displacement.tif` (two bands, dx and dy in query pixels on the
    grid of the scene), `truth/labels.tif` (land cover), `truth/labelTxt/*.txt` (oriented boxes of
    each image in DOTA's form), `truth/objects.gpkg`; and `scene.json` with every parameter, last.

    Args:
        folder: Made if it is missing.
        scene: The ground.
        modalities: Which images to write, of `MODALITIES`.
        warp: Geometry of the queries; None leaves them on the grid of the scene.
        queries: The modalities that are seen through the warp.
        acquisition: When and how the images are taken.
        progress: Called with the name of each product before it is made.

    Raises:
        InputError: An unknown modality, or a ratio that does not divide the scene.
        OutputError: A file cannot be written.
    """
    _check(modalities)
    folder = Path(folder)
    taken = acquisition or Acquisition()
    divided(scene.shape, taken.ratio)
    warped = tuple(m for m in MODALITIES if m in modalities and m in queries and warp is not None)
    tell = progress or (lambda _: None)
    truth = folder / "truth"
    images: dict[str, Path] = {}
    for modality in MODALITIES:
        if modality not in modalities:
            continue
        tell(modality)
        own_warp = warp if modality in warped else None
        image = render(scene, modality, warp=own_warp, acquisition=taken)
        images[modality] = folder / f"{modality}.tif"
        _write_image(images[modality], image, modality)
        ratio = taken.ratio if modality == "ms" else 1
        path = truth / "labelTxt" / f"{modality}.txt"
        shape = (image.data.shape[1], image.data.shape[2])
        _write_dota(path, scene.objects, shape, own_warp, ratio, scene.gsd_m * ratio)
    tell("truth")
    files = {"labels": truth / "labels.tif", "objects": truth / "objects.gpkg"}
    _write_labels(files["labels"], scene)
    _write_objects(files["objects"], scene)
    if warp is not None:
        files["displacement"] = truth / _DISPLACEMENT
        _write_displacement(files["displacement"], scene, warp)
    references = tuple(m for m in images if m not in warped)
    files["transform"] = truth / "transform.json"
    write_json(files["transform"], _transform(scene, warp, references, warped, taken))
    write_json(folder / _SCENE, _parameters(scene, warp, references, warped, taken))
    return WrittenScene(folder, images, references, warped, files)


def _check(modalities: Collection[str]) -> None:
    unknown = sorted(set(modalities) - set(MODALITIES))
    if unknown or not modalities:
        raise InputError(
            f"modalities {', '.join(unknown)} are unknown"
            if unknown
            else "no modality is asked for",
            f"the modalities are {', '.join(MODALITIES)}",
            "for example --modalities ms,sar",
        )


def _write_image(path: Path, image: Raster, modality: str) -> None:
    write_cog(
        path,
        image,
        nodata=None if modality == "map" and image.valid.all() else 0,
        dtype="uint8" if modality == "map" else "uint16",
    )


def _write_labels(path: Path, scene: Scene) -> None:
    labels = Raster(
        data=scene.labels()[None].astype(np.float32),
        valid=np.ones(scene.shape, bool),
        geobox=scene.geobox,
        bands=("class",),
        radiometry="dn",
    )
    write_cog(
        path,
        labels,
        nodata=_NO_LABEL,
        dtype="uint8",
        colours=dict(enumerate(scene.class_colours)),
        class_names=scene.class_names,
    )


def _write_displacement(path: Path, scene: Scene, warp: Warp) -> None:
    h, w = scene.shape
    forward = Displacement(warp, (h, w), inverse=False)
    moved = np.empty((2, h, w), np.float32)
    for start in range(0, h, 256):
        stop = min(start + 256, h)
        moved[:, start:stop] = np.moveaxis(forward.rows(start, stop), -1, 0)
    field = Raster(
        data=moved,
        valid=np.ones((h, w), bool),
        geobox=scene.geobox,
        bands=("dx", "dy"),
        radiometry="dn",
    )
    write_cog(path, field, nodata=None, dtype="float32")


def _write_objects(path: Path, scene: Scene) -> None:
    affine = scene.geobox.affine
    x, y = scene.objects.corners[..., 0], scene.objects.corners[..., 1]
    on_map = np.stack(
        (affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f), axis=-1
    )
    boxes = scene.objects.boxes
    columns = {
        "class": np.array(scene.objects.names(), dtype=object),
        "length_m": boxes[:, 2] * scene.gsd_m,
        "width_m": boxes[:, 3] * scene.gsd_m,
        "angle_deg": np.rad2deg(boxes[:, 4]),
    }
    write_polygons(path, on_map, columns, scene.geobox.crs, "objects")


def boxes_in_image(
    objects: Objects, shape: tuple[int, int], warp: Warp | None, ratio: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Corners (N, 4, 2) of the objects in an image, their labels, and which are hard to see.

    Args:
        objects: In pixels of the scene.
        shape: (h, w) of the image.
        warp: Its geometry; None for a reference.
        ratio: Scene pixels per pixel of the image.

    Returns:
        Only objects whose centre lies in the image. Hard are those that reach out of it and those
        whose short side is below two pixels.
    """
    corners = objects.corners.reshape(-1, 2)
    if warp is not None:
        corners = warp.forward(corners)
    corners = corners.reshape(-1, 4, 2) / ratio
    centre = corners.mean(axis=1)
    size = np.array([shape[1], shape[0]])
    kept = ((centre >= 0) & (centre <= size)).all(axis=1)
    corners, labels = corners[kept], objects.labels[kept]
    whole = ((corners >= 0) & (corners <= size)).all(axis=(1, 2))
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    return corners, labels, ~whole | (sides.min(axis=1, initial=np.inf) < 2.0)


def _write_dota(
    path: Path,
    objects: Objects,
    shape: tuple[int, int],
    warp: Warp | None,
    ratio: int,
    gsd_m: float,
) -> None:
    corners, labels, hard = boxes_in_image(objects, shape, warp, ratio)
    lines = ["imagesource:rsfuse simulate", f"gsd:{gsd_m:g}"]
    for box, label, difficult in zip(corners, labels, hard, strict=True):
        numbers = " ".join(f"{value:.3f}" for value in box.ravel())
        lines.append(f"{numbers} {CLASS_NAMES[label]} {int(difficult)}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _transform(
    scene: Scene,
    warp: Warp | None,
    references: tuple[str, ...],
    queries: tuple[str, ...],
    taken: Acquisition,
) -> dict[str, Any]:
    return {
        "format": "rsfuse-truth",
        "format_version": 1,
        "convention": "x right, y down, (0, 0) the outer corner of the first pixel; "
        "reference pixels are those of the scene, query pixels those of each query file",
        "model": "none" if warp is None else warp.model,
        "transform_px": None if warp is None or warp.matrix is None else warp.matrix,
        "displacement": None if warp is None else _DISPLACEMENT,
        "references": [f"{name}.tif" for name in references],
        "queries": [f"{name}.tif" for name in queries],
        "scene_pixels_per_file_pixel": {
            f"{name}.tif": taken.ratio if name == "ms" else 1 for name in (*references, *queries)
        },
    }


def _parameters(
    scene: Scene,
    warp: Warp | None,
    references: tuple[str, ...],
    queries: tuple[str, ...],
    taken: Acquisition,
) -> dict[str, Any]:
    names = scene.objects.names()
    return {
        "format": "rsfuse-scene",
        "format_version": 1,
        "seed": scene.seed,
        "shape": scene.shape,
        "gsd_m": scene.gsd_m,
        "oversample": scene.oversample,
        "crs": str(scene.geobox.crs),
        "transform": list(scene.geobox.affine)[:6],
        "relief_m": float(np.ptp(scene.terrain_m.values)),
        "warp": "none" if warp is None else warp.model,
        "references": references,
        "queries": queries,
        "acquisition": {**asdict(taken), "sun": taken.sunlight._asdict()},
        "objects": {name: names.count(name) for name in sorted(set(names))},
        "land_cover": [cover._asdict() for cover in LAND_COVER],
        "note": "simulated: it proves that software works, not how accurate it is on real images",
    }
