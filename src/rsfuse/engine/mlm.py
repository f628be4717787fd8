"""A bundle's card as a STAC Item with the Machine Learning Model extension (MLM 1.4).

So a model can be listed in a STAC catalog beside the scenes that it is for. Specification:
https://github.com/stac-extensions/mlm. Oriented boxes and image matching have no task name of
their own there: they are said in the description of the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsfuse.runs import utc_now

if TYPE_CHECKING:
    from rsfuse.engine.bundle import BundleCard, InputInfo

SCHEMA = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
TASKS = {
    "classify": ("semantic-segmentation", "probability of each class, per pixel"),
    "detect": ("object-detection", "oriented boxes: cx, cy, w, h, angle, score, class"),
    "match": ("other", "tie points of two images: x, y, x', y', probability"),
}
_AXES = ["batch", "bands", "height", "width"]


def mlm_item(
    card: BundleCard, parameters: int, files: dict[str, tuple[str, int]]
) -> dict[str, Any]:
    """The STAC Item of a bundle.

    Args:
        card: The card.
        parameters: Number of weights.
        files: Name -> SHA-256 (hexadecimal) and size in bytes of each file beside the card.
    """
    now = utc_now()
    task, said = TASKS[card.task]
    classes = [
        {"value": number, "name": item.name, "color_hint": item.color.lstrip("#").upper()}
        for number, item in enumerate(card.classes)
    ]
    pair = [{"name": "reference"}, {"name": "query"}] if card.task == "match" else []
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [SCHEMA, FILE_SCHEMA],
        "id": card.name,
        "geometry": None,
        "properties": {
            "datetime": now,
            "created": now,
            "description": f"Model for rsfuse {card.task}; see README.md beside it.",
            "mlm:name": card.name,
            "mlm:architecture": card.architecture,
            "mlm:tasks": [task],
            "mlm:framework": "pytorch",
            "mlm:total_parameters": parameters,
            "mlm:pretrained": True,
            "mlm:pretrained_source": card.training.get("licence", "not stated"),
            "mlm:accelerator_constrained": False,
            "mlm:input": [_input(info) for info in card.inputs] or [_any_image(p) for p in pair],
            "mlm:output": [
                {
                    "name": card.task,
                    "tasks": [task],
                    "result": {"shape": [-1, -1], "dim_order": ["batch", "result"],
                               "data_type": "float32"},
                    "description": said,
                    **({"classification:classes": classes} if classes else {}),
                }
            ],
        },
        "links": [],
        "assets": {name: _asset(name, *about) for name, about in files.items()},
    }  # fmt: skip


def _input(info: InputInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "bands": list(info.bands),
        "input": _image(len(info.bands)),
        "value_scaling": [
            {"type": "min-max", "minimum": low, "maximum": high}
            for low, high in zip(info.low, info.high, strict=True)
        ]
        or None,
        "resize_type": None,
        "pre_processing_function": None,
    }


def _any_image(said: dict[str, str]) -> dict[str, Any]:
    """An input of any sensor, brought to structure channels by rsfuse itself."""
    return {
        **said, "bands": [], "input": _image(-1), "value_scaling": None, "resize_type": None,
        "pre_processing_function": None,
    }  # fmt: skip


def _image(bands: int) -> dict[str, Any]:
    return {"shape": [-1, bands, -1, -1], "dim_order": _AXES, "data_type": "float32"}


def _asset(name: str, sha256: str, size: int) -> dict[str, Any]:
    kinds = {
        ".safetensors": ("application/octet-stream", ["mlm:model", "mlm:weights"],
                         "safetensors.torch.save_file"),
        ".onnx": ("application/octet-stream; framework=onnx", ["mlm:model"], "onnx.save"),
    }  # fmt: skip
    media, roles, artifact = kinds.get(name[name.rfind(".") :], ("text/markdown", ["metadata"], ""))
    return {
        "href": f"./{name}",
        "type": media,
        "roles": roles,
        **({"mlm:artifact_type": artifact} if artifact else {}),
        "file:checksum": f"1220{sha256}",
        "file:size": size,
    }
