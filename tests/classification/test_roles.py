"""The door for foreign weights takes what people have: tensors, flat rates, any byte order."""

from typing import Any

import numpy as np
import pytest
import torch

from rsfuse.classification.model import DAS2F, build_model
from rsfuse.classification.roles import export_roles, load_roles, role_shapes
from rsfuse.errors import InputError


def small(**arguments: Any) -> DAS2F:
    return DAS2F(3, bands=2, ratio=2, **arguments)


def test_the_whole_list_of_a_published_network() -> None:
    """Section 9.2 of the reference document, spelt out."""
    pair = ("weight", "bias")
    wanted = {f"embed.pan.lift.{x}" for x in pair}
    mixer = ["gate.weight", "out.weight"]
    mixer += [f"local.{part}.{x}" for part in ("depthwise", "fold", "bn") for x in pair]
    mixer += ["local.bn.running_mean", "local.bn.running_var"]
    mixer += [f"scan.{x}" for x in ("x_proj", "dt_weight", "dt_bias", "A_log", "D")]
    mixer += [f"mlp.{part}.{x}" for part in ("fc1", "fc2") for x in pair]
    for m in ("ms", "pan"):
        wanted |= {f"embed.{m}.{part}.{x}" for part in ("conv", "norm") for x in pair}
        for s in (1, 2):
            norms = [f"{part}.{x}" for part in ("norm", "scan.norm") for x in pair]
            wanted |= {f"stage.{s}.own.{m}.{name}" for name in [*mixer, *norms]}
            wanted |= {f"stage.{s}.cross.{m}.{name}" for name in mixer}
    for s in (1, 2):
        wanted |= {f"stage.{s}.cross.{part}.{x}" for part in ("norm", "scan_norm") for x in pair}
        wanted |= {
            f"stage.{s}.fuse.{part}.{x}" for part in ("norm", "dominant", "common") for x in pair
        }
    wanted |= {f"head.{part}.{x}" for part in ("fc1", "fc2") for x in pair}
    shapes = role_shapes(build_model("das2f-reference-2"))
    assert set(shapes) == wanted
    statistics = 2 * 2 * 2 * 2 * 64  # mean and variance, two sensors, own and cross, two stages
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 17_416_531 + statistics


@pytest.mark.parametrize("arguments", [{}, {"size": {"norm": "batch"}, "fusion": "reference"}])
def test_a_round_trip_of_any_network(arguments: dict[str, Any]) -> None:
    one, two = small(**arguments), small(**arguments)
    ms, pan = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 32, 32)
    one(ms, pan)  # moves the statistics of BatchNorm, which have roles too
    load_roles(two, export_roles(one))
    with torch.no_grad():
        assert torch.equal(one.eval()(ms, pan), two.eval()(ms, pan))


def test_flat_rates_have_the_direction_first() -> None:
    model = small()
    d, n = model.size.width, model.size.states
    at = "stage.1.own.ms.scan"
    arrays = export_roles(model)
    rates = np.arange(4 * d * n, dtype=np.float32)
    skip = np.arange(4 * d, dtype=np.float32)
    load_roles(model, {**arrays, f"{at}.A_log": rates.reshape(4 * d, n), f"{at}.D": skip})
    scan = model.stage["1"].own["ms"].scan
    assert scan.A_log[2, 3, 1] == (2 * d + 3) * n + 1
    assert scan.D[3, 5] == 3 * d + 5


def test_only_rates_and_skips_may_be_flat() -> None:
    model = small()
    arrays = export_roles(model)
    role = "stage.1.own.ms.scan.dt_bias"
    with pytest.raises(InputError, match="dt_bias"):
        load_roles(model, {**arrays, role: arrays[role].reshape(-1)})


def test_tensors_parameters_and_foreign_bytes_are_taken() -> None:
    one, two = small(), small()
    given: dict[str, Any] = dict(one.named_parameters())  # these require a gradient
    given["embed.ms.norm.bias"] = np.full(32, 0.5, dtype=">f4")
    given["embed.ms.norm.weight"] = [0.25] * 32
    load_roles(two, given)
    assert torch.equal(one.embed["ms"].conv.weight, two.embed["ms"].conv.weight)
    assert (two.embed["ms"].norm.bias == 0.5).all()
    assert (two.embed["ms"].norm.weight == 0.25).all()
    assert all(p.is_leaf and p.requires_grad for p in two.parameters())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["x"] * 32, "no array of numbers"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (np.full(32, 1e300), "not finite"),  # finite, but not in the float32 of the model
        (np.full(32, np.inf), "not finite"),
        (1.0, "has shape"),
    ],
)
def test_what_is_no_weight_is_named_and_nothing_is_copied(bad: Any, said: str) -> None:
    model = small()
    before = export_roles(model)
    arrays: dict[str, Any] = {role: array + 1 for role, array in before.items()}
    with pytest.raises(InputError, match=said) as caught:
        load_roles(model, {**arrays, "embed.ms.norm.bias": bad})
    assert "embed.ms.norm.bias" in str(caught.value)
    after = export_roles(model)
    assert all(np.array_equal(before[role], after[role]) for role in before)
