"""Model bundles: round trip, checks, and what is refused."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from rsfuse.engine.bundle import (
    BUNDLE_FORMAT,
    CARD_FILE,
    WEIGHTS_FILE,
    Bundle,
    BundleCard,
    ClassInfo,
    InputInfo,
    is_bundle,
    load_bundle,
    save_bundle,
    shipped_bundles,
    zip_bundle,
)
from rsfuse.errors import InputError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    card = BundleCard(
        task="classify",
        name="tiny",
        architecture="das2f",
        arguments={"bands": 4},
        inputs=(InputInfo(name="ms", bands=("b", "g"), low=(0.0, 1.0), high=(9.0, 8.0)),),
        classes=(ClassInfo(name="water", color="#0000ff"),),
        training={"data": "simulated", "licence": "none needed"},
    )
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    return save_bundle(tmp_path / "tiny", card, state, readme="# tiny\n")


def test_what_is_saved_is_loaded(bundle: Bundle) -> None:
    again = load_bundle(bundle.path, task="classify")
    assert again.card == bundle.card
    assert again.card.classes[0].name == "water"
    state = again.state()
    assert torch.equal(state["layer.weight"], torch.arange(6.0).reshape(2, 3))
    assert state["n"].dtype == torch.int64
    assert again.file("README.md") == b"# tiny\n"


def test_a_zip_file_is_a_bundle_too(bundle: Bundle, tmp_path: Path) -> None:
    path = zip_bundle(bundle, tmp_path / "tiny.zip")
    again = load_bundle(path)
    assert again.card == bundle.card
    assert torch.equal(again.state()["n"], torch.tensor(3))


def test_changed_weights_are_refused(bundle: Bundle) -> None:
    path = bundle.path / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        load_bundle(bundle.path).state()


def test_another_task_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="rsfuse detect"):
        load_bundle(bundle.path, task="detect")


def test_a_later_format_is_refused(bundle: Bundle) -> None:
    card = json.loads((bundle.path / CARD_FILE).read_text())
    (bundle.path / CARD_FILE).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_bundle(bundle.path)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "absent")
    with pytest.raises(InputError, match="not a model bundle"):
        load_bundle(tmp_path)


def test_a_zip_without_weights(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "half.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(bundle.path / CARD_FILE, CARD_FILE)
    with pytest.raises(InputError, match=WEIGHTS_FILE):
        load_bundle(path).state()


def test_an_unknown_key_is_refused(bundle: Bundle) -> None:
    card = json.loads((bundle.path / CARD_FILE).read_text())
    (bundle.path / CARD_FILE).write_text(json.dumps({**card, "clases": []}))
    with pytest.raises(InputError, match="clases"):
        load_bundle(bundle.path)


def test_the_item_is_stac_with_mlm(bundle: Bundle) -> None:
    pystac = pytest.importorskip("pystac", reason="pystac comes with the extra fetch")
    mlm = pytest.importorskip("pystac.extensions.mlm")
    item = pystac.Item.from_dict(json.loads(bundle.file("item.json")))
    said = mlm.MLMExtension.ext(item)
    assert said.mlm_name == "tiny"
    assert said.architecture == "das2f"
    assert said.total_parameters == 7
    assert item.properties["mlm:input"][0]["value_scaling"][1] == {
        "type": "min-max", "minimum": 1.0, "maximum": 8.0
    }  # fmt: skip
    assert item.properties["mlm:output"][0]["classification:classes"][0]["name"] == "water"
    weights = item.assets["model.safetensors"]
    assert "mlm:weights" in weights.roles
    assert weights.extra_fields["file:checksum"] == "1220" + bundle.card.files[WEIGHTS_FILE]


def test_bundles_of_the_first_format_are_read(bundle: Bundle) -> None:
    path = bundle.path / CARD_FILE
    content = json.loads(path.read_text())
    content["format"] = 1
    del content["files"]["item.json"]
    path.write_text(json.dumps(content))
    (bundle.path / "item.json").unlink()
    again = load_bundle(bundle.path)
    assert again.card.format == 2
    assert torch.equal(again.state()["n"], torch.tensor(3))


@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_bundles_are_whole_and_of_the_present_format(name: str) -> None:
    bundle = load_bundle(name)
    assert json.loads((bundle.path / CARD_FILE).read_text())["format"] == BUNDLE_FORMAT
    for file in bundle.card.files:
        bundle.file(file)
    assert json.loads(bundle.file("item.json"))["properties"]["mlm:total_parameters"] == sum(
        value.numel() for value in bundle.state().values()
    )
