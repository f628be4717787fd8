"""ONNX: the exported detector finds the same, and what cannot be exported is explained."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rsfuse.cli.main import main
from rsfuse.detection.export import export
from rsfuse.detection.network import NetworkDetector
from rsfuse.detection.onnx import OnnxDetector, fitted
from rsfuse.detection.runtime import load_detector
from rsfuse.engine.bundle import Bundle, load_bundle
from rsfuse.errors import InputError
from rsfuse.simulate import render, simulate_scene

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="ONNX is an extra")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return render(simulate_scene(256, gsd_m=0.5, seed=5), "pan").data


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(load_bundle("simulated-objects"), tmp_path_factory.mktemp("fp32"), tile=256)


def test_the_same_boxes_by_both_runtimes(exact: Bundle, image: np.ndarray) -> None:
    torch_one = load_detector(exact, score=0.2, runtime="torch")
    onnx_one = load_detector(exact, score=0.2)
    assert isinstance(torch_one, NetworkDetector)
    assert isinstance(onnx_one, OnnxDetector)
    valid = np.ones(image.shape[1:], bool)
    expected, found = torch_one(image, valid), onnx_one(image, valid)
    assert len(expected[1]) > 3
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_larger_images_are_looked_at_in_parts(exact: Bundle, image: np.ndarray) -> None:
    detector = load_detector(exact, score=0.2)
    wide = np.concatenate([image, image], axis=2)
    alone = detector(image, np.ones(image.shape[1:], bool))
    found = detector(wide, np.ones(wide.shape[1:], bool))
    assert len(found[1]) >= 2 * len(alone[1]) - 2
    assert found[0][:, 0].max() > 256


def test_a_detector_of_two_images(tmp_path: Path) -> None:
    bundle = export(load_bundle("simulated-pairs"), tmp_path, tile=256)
    scene = simulate_scene(256, gsd_m=0.5, seed=5)
    first, second = (render(scene, name).data for name in ("pan", "thermal"))
    valid = np.ones(scene.shape, bool)
    torch_one = load_detector(bundle, score=0.2, runtime="torch")
    onnx_one = load_detector(bundle, score=0.2)
    assert isinstance(onnx_one, OnnxDetector)
    for pair in ((), (second,)):
        expected, found = torch_one(first, valid, *pair), onnx_one(first, valid, *pair)
        assert len(expected[1]) > 0
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_int8_finds_nearly_the_same(tmp_path: Path, exact: Bundle, image: np.ndarray) -> None:
    small = export(
        load_bundle("simulated-objects"), tmp_path / "b", tile=256, precision="int8",
        calibration=[image],
    )  # fmt: skip
    sizes = [len(b.file("model.onnx")) for b in (small, exact)]
    assert sizes[0] < 0.6 * sizes[1]
    valid = np.ones(image.shape[1:], bool)
    one, other = (load_detector(b, score=0.4)(image, valid) for b in (exact, small))
    assert abs(len(one[1]) - len(other[1])) <= 0.4 * len(one[1]) + 1


def test_the_file_says_what_deepness_asks_for(tmp_path: Path) -> None:
    """Keys as the QGIS plugin reads them, and its arithmetic on a tile gives our boxes."""
    import onnx
    import onnxruntime

    bundle = export(load_bundle("hit-uav-tiny"), tmp_path, tile=256)
    path = tmp_path / "model.onnx"
    keys = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert keys["model_type"] == "Detector"
    assert keys["det_type"] == "YOLO_Ultralytics_obb"
    assert keys["class_names"]["0"] == bundle.card.classes[0].name
    assert keys["tiles_size"] == keys["tile_size"] == 256
    image = np.random.default_rng(0).integers(0, 256, (1, 256, 256)).astype(np.uint8)
    mean, std = (np.array(keys[f"standardization_{n}"])[:, None, None] for n in ("mean", "std"))
    given = ((image / 255 - mean) / std).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert len(session.get_inputs()) == len(session.get_outputs()) == 1
    (rows,) = session.run(None, {session.get_inputs()[0].name: given[None]})
    best = rows[0][:, rows[0][4:-1].max(axis=0).argmax()]
    detector = load_detector(bundle, score=0.0)
    boxes, scores, labels = detector(image.astype(np.float32), np.ones((256, 256), bool))
    assert scores[0] == pytest.approx(best[4:-1].max(), abs=1e-4)
    assert labels[0] == best[4:-1].argmax()
    assert boxes[0][:2] == pytest.approx(best[:2], abs=0.05)
    sixteen_bit = export(load_bundle("simulated-objects"), tmp_path / "sim", tile=64)
    found = onnx.load(sixteen_bit.path / "model.onnx").metadata_props
    assert "model_type" not in {p.key for p in found}


def test_what_cannot_be_exported_is_explained(tmp_path: Path, image: np.ndarray) -> None:
    bundle = load_bundle("simulated-objects")
    with pytest.raises(InputError, match="int8 needs images"):
        export(bundle, tmp_path, precision="int8")
    with pytest.raises(InputError, match="multiple of 32"):
        export(bundle, tmp_path, tile=100)
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        load_detector(bundle, runtime="onnx")
    with pytest.raises(InputError, match="is no detector"):
        export(load_bundle("simulated-land-cover"), tmp_path)
    with pytest.raises(InputError, match="takes two images"):
        export(load_bundle("simulated-pairs"), tmp_path, precision="int8", calibration=[image])


def test_images_are_padded_and_never_scaled() -> None:
    square = fitted(np.ones((2, 20, 70), np.float32), 64)
    assert square.shape == (2, 64, 64)
    assert square[:, :20, :].all()
    assert not square[:, 20:].any()


def test_export_and_detect_as_commands(tmp_path: Path, image: np.ndarray) -> None:
    from rsfuse.geo.write import write_cog

    write_cog(tmp_path / "scene.tif", image)
    bundle = tmp_path / "bundle.zip"
    assert main(["export", "simulated-objects", "-o", str(bundle), "--tile", "256"]) == 0
    for runtime in ("onnx", "torch"):
        target = tmp_path / f"{runtime}.csv"
        words = ["detect", str(tmp_path / "scene.tif"), "-m", str(bundle), "-o", str(target)]
        assert main([*words, "--runtime", runtime]) == 0
    counts = [len((tmp_path / f"{r}.csv").read_text().splitlines()) for r in ("onnx", "torch")]
    assert counts[0] == counts[1] > 3
    assert main(["export", "simulated-objects", "-o", str(bundle)]) == 2


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from rsfuse.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_bundle_with_onnx_needs_no_torch(exact: Bundle, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert main(["simulate", "-o", str(scene), "--size", "256", "--gsd", "0.5", "--modalities",
                 "pan", "--warp", "none", "-q"]) == 0  # fmt: skip
    words = ["detect", str(scene / "pan.tif"), "--score", "0.1"]

    def detected(model: str, name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *words, "-m", model, "-o", name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = detected(str(exact.path), "without.csv")
    assert done.returncode == 0, done.stderr
    torch_one = [*words, "-m", str(exact.path), "--runtime", "torch"]
    assert main([*torch_one, "-o", str(tmp_path / "with.csv")]) == 0
    one, two = (
        sorted(
            float(row["score"])
            for row in csv.DictReader((tmp_path / name).read_text().splitlines())
        )
        for name in ("without.csv", "with.csv")
    )
    assert len(two) > 0
    assert one == pytest.approx(two, abs=1e-3)
    refused = detected("simulated-objects", "none.csv")
    assert refused.returncode == 2
    assert "PyTorch is not installed" in refused.stderr
