"""DAS2F: the published sizes and data flow, and what the general network promises."""

import numpy as np
import pytest
import torch

from rsfuse.classification.model import DAS2F, ReferenceFuse, build_model
from rsfuse.classification.roles import export_roles, load_roles, role_shapes
from rsfuse.errors import InputError

Array = np.ndarray


# -- an independent transcription of the reference document in float64 NumPy, loops where it says --


def linear(x: Array, w: dict[str, Array], name: str) -> Array:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def layer_norm(x: Array, w: dict[str, Array], name: str) -> Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    from scipy.special import erf

    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def conv_stride(x: Array, w: Array, b: Array) -> Array:
    """(C, H, W) with a kernel as large as its stride."""
    c, s = w.shape[1:3]
    h, v = x.shape[1] // s, x.shape[2] // s
    cells = x.reshape(c, h, s, v, s)
    return np.einsum("chsvt,ocst->ohv", cells, w) + b[:, None, None]


def depthwise(x: Array, w: Array, b: Array) -> Array:
    h, v = x.shape[1:]
    out = np.zeros_like(x)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    for i in range(3):
        for j in range(3):
            out += w[:, 0, i, j][:, None, None] * around[:, i : i + h, j : j + v]
    return out + b[:, None, None]


def bilinear(x: Array, r: int) -> Array:
    c, h, w = x.shape
    out = np.zeros((c, h * r, w * r))
    for axis, size in ((1, h), (2, w)):
        at = np.clip((np.arange(size * r) + 0.5) / r - 0.5, 0, None)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = at - low
        shape = [1, 1, 1]
        shape[axis] = -1
        share = share.reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    out[:] = x
    return out


def scan(u: Array, dyn: Array, w: dict[str, Array], name: str) -> Array:
    """u, dyn (4, 64, 256): u filtered by what `dyn` and the set `name` give."""
    out = np.zeros_like(u)
    for k in range(4):
        found = w[f"{name}.x_proj"][k] @ dyn[k]
        low, B, C = found[:24], found[24:48], found[48:72]
        raw = w[f"{name}.dt_weight"][k] @ low + w[f"{name}.dt_bias"][k][:, None]
        delta = np.log1p(np.exp(raw))
        A = -np.exp(w[f"{name}.A_log"][k])
        h = np.zeros((64, 24))
        for t in range(u.shape[2]):
            d = delta[:, t, None]
            h = np.exp(d * A) * h + d * B[None, :, t] * u[k, :, t, None]
            out[k, :, t] = (h * C[None, :, t]).sum(1) + w[f"{name}.D"][k] * u[k, :, t]
    return out


def directions(u: Array) -> Array:
    rows = u.reshape(64, -1)
    columns = u.transpose(0, 2, 1).reshape(64, -1)
    return np.stack([rows, columns, rows[:, ::-1], columns[:, ::-1]])


def merge(y: Array) -> Array:
    rows = y[0] + y[2][:, ::-1]
    columns = y[1] + y[3][:, ::-1]
    return rows.reshape(64, 16, 16) + columns.reshape(64, 16, 16).transpose(0, 2, 1)


def local(x: Array, w: dict[str, Array], name: str, training: list[Array] | None) -> Array:
    """Tokens (16, 16, 64) to (64, 16, 16), before BatchNorm where a batch is collected."""
    pixels = np.zeros((4, 64, 64))
    for c in range(4):
        for i in range(4):
            for j in range(4):
                pixels[c, i::4, j::4] = x[:, :, c * 16 + i * 4 + j]
    pixels = silu(depthwise(pixels, w[f"{name}.depthwise.weight"], w[f"{name}.depthwise.bias"]))
    return conv_stride(pixels, w[f"{name}.fold.weight"], w[f"{name}.fold.bias"])


def batch_norm(xs: list[Array], w: dict[str, Array], name: str, train: bool) -> list[Array]:
    if train:
        stacked = np.stack(xs)
        mean, var = stacked.mean((0, 2, 3)), stacked.var((0, 2, 3))
    else:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = w[f"{name}.weight"] / np.sqrt(var + 1e-5)
    return [(x - mean[:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]
            for x in xs]  # fmt: skip


def finish(x: Array, seen: Array, y: Array, w: dict[str, Array], name: str, norm: str,
           scan_norm: str) -> Array:  # fmt: skip
    z = silu(linear(seen, w, f"{name}.gate"))
    t = x + linear(layer_norm(merge(y).transpose(1, 2, 0), w, scan_norm) * z, w, f"{name}.out")
    inner = gelu(linear(layer_norm(t, w, norm), w, f"{name}.mlp.fc1"))
    return t + linear(inner, w, f"{name}.mlp.fc2")


def subpixels(x: Array) -> Array:
    out = np.zeros((32, 32, 16))
    for c in range(16):
        for i in range(2):
            for j in range(2):
                out[i::2, j::2, c] = x[:, :, c * 4 + i * 2 + j]
    return out.reshape(1024, 16)


def outer_mean(p: Array, q: Array, w: dict[str, Array], name: str) -> Array:
    gate = sigmoid(linear(np.concatenate([p, q], -1), w, name))
    return np.stack([np.outer(a * g, b).mean(0) for a, g, b in zip(p, gate, q, strict=True)])


def transcription(w: dict[str, Array], ms: Array, pan: Array, stages: int, train: bool) -> Array:
    batch = len(ms)
    tokens = {"ms": [], "pan": []}
    for n in range(batch):
        up = bilinear(ms[n], 4)
        lift = w["embed.pan.lift.weight"][:, 0, 0, 0][:, None, None] * pan[n]
        lift = lift + w["embed.pan.lift.bias"][:, None, None]
        for m, image in (("ms", up), ("pan", lift)):
            t = conv_stride(image, w[f"embed.{m}.conv.weight"], w[f"embed.{m}.conv.bias"])
            tokens[m].append(layer_norm(t.transpose(1, 2, 0), w, f"embed.{m}.norm"))
    dominant = []
    for s in range(1, stages + 1):
        own, common = {}, {}
        u_cross = {}
        for m in ("ms", "pan"):
            name = f"stage.{s}.own.{m}"
            seen = [layer_norm(t, w, f"{name}.norm") for t in tokens[m]]
            u = [local(x, w, f"{name}.local", None) for x in seen]
            u = batch_norm(u, w, f"{name}.local.bn", train)
            own[m] = [
                finish(t, x, scan(directions(v), directions(v), w, f"{name}.scan"), w, name,
                       f"{name}.norm", f"{name}.scan.norm")
                for t, x, v in zip(tokens[m], seen, u, strict=True)
            ]  # fmt: skip
            shared = [layer_norm(t, w, f"stage.{s}.cross.norm") for t in tokens[m]]
            v = [local(x, w, f"stage.{s}.cross.{m}.local", None) for x in shared]
            u_cross[m] = (shared, batch_norm(v, w, f"stage.{s}.cross.{m}.local.bn", train))
        for m, other in (("ms", "pan"), ("pan", "ms")):
            shared, mine = u_cross[m]
            theirs = u_cross[other][1]
            common[m] = [
                finish(t, x, scan(directions(a), directions(b), w, f"stage.{s}.cross.{other}.scan"),
                       w, f"stage.{s}.cross.{m}", f"stage.{s}.cross.norm",
                       f"stage.{s}.cross.scan_norm")
                for t, x, a, b in zip(tokens[m], shared, mine, theirs, strict=True)
            ]  # fmt: skip
        dominant.append(
            {m: [a - c for a, c in zip(own[m], common[m], strict=True)] for m in ("ms", "pan")}
        )
        tokens = common
    logits = []
    for n in range(batch):
        f = subpixels((tokens["ms"][n] + tokens["pan"][n]) / 2)
        for s in range(stages, 0, -1):
            name = f"stage.{s}.fuse"
            da, db = (subpixels(dominant[s - 1][m][n]) for m in ("ms", "pan"))
            x = outer_mean(layer_norm(da, w, f"{name}.norm"), layer_norm(db, w, f"{name}.norm"),
                           w, f"{name}.dominant")  # fmt: skip
            f = outer_mean(layer_norm(x, w, f"{name}.norm"), layer_norm(f, w, f"{name}.norm"),
                           w, f"{name}.common")  # fmt: skip
        logits.append(linear(linear(f.reshape(-1), w, "head.fc1"), w, "head.fc2"))
    return np.stack(logits)


def perturbed(model: torch.nn.Module, seed: int = 0) -> dict[str, Array]:
    """Every weight and statistic moved, so that nothing hides behind ones and zeros."""
    random = np.random.default_rng(seed)
    arrays = {}
    for role, array in export_roles(model).items():
        scale = 0.1 * np.abs(array).mean() + 0.02
        moved = array.astype(np.float64) + scale * random.standard_normal(array.shape)
        arrays[role] = np.abs(moved) if role.endswith("running_var") else moved
    return arrays


@pytest.mark.parametrize(("stages", "classes"), [(1, 7), (2, 11)])
@pytest.mark.parametrize("train", [False, True])
def test_the_published_data_flow(stages: int, classes: int, train: bool) -> None:
    model = build_model(f"das2f-reference-{stages}").double().train(train)
    arrays = perturbed(model)
    load_roles(model, arrays)
    random = np.random.default_rng(1)
    ms, pan = random.standard_normal((2, 4, 16, 16)), random.standard_normal((2, 1, 64, 64))
    with torch.no_grad():
        found = model(torch.from_numpy(ms), torch.from_numpy(pan)).numpy()
    expected = transcription(arrays, ms, pan, stages, train)
    assert expected.shape == (2, classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize(("stages", "total"), [(1, 17_103_215), (2, 17_416_531)])
def test_the_published_number_of_parameters(stages: int, total: int) -> None:
    model = build_model(f"das2f-reference-{stages}")

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model) == total
    stage = model.stage["1"]
    assert count(stage.own["ms"]) == count(stage.own["pan"]) == 77_096
    assert count(stage.cross) == 153_936
    assert count(stage.fuse) == 1_088
    assert count(model.embed["ms"]) == 4_288
    assert count(model.embed["pan"]) == 4_288 + 8


ROLES = {
    "embed.pan.lift.weight": (4, 1, 1, 1),
    "embed.ms.conv.weight": (64, 4, 4, 4),
    "embed.pan.norm.bias": (64,),
    "stage.1.own.ms.norm.weight": (64,),
    "stage.1.own.pan.gate.weight": (64, 64),
    "stage.1.own.ms.local.depthwise.weight": (4, 1, 3, 3),
    "stage.1.own.ms.local.fold.weight": (64, 4, 4, 4),
    "stage.1.own.ms.local.bn.running_var": (64,),
    "stage.1.own.ms.scan.x_proj": (4, 72, 64),
    "stage.1.own.ms.scan.dt_weight": (4, 64, 24),
    "stage.1.own.ms.scan.dt_bias": (4, 64),
    "stage.1.own.ms.scan.A_log": (4, 64, 24),
    "stage.1.own.ms.scan.D": (4, 64),
    "stage.1.own.ms.scan.norm.weight": (64,),
    "stage.1.own.ms.out.weight": (64, 64),
    "stage.1.own.ms.mlp.fc1.weight": (256, 64),
    "stage.1.own.ms.mlp.fc2.bias": (64,),
    "stage.1.cross.norm.weight": (64,),
    "stage.1.cross.scan_norm.bias": (64,),
    "stage.1.cross.pan.scan.x_proj": (4, 72, 64),
    "stage.1.cross.ms.local.bn.weight": (64,),
    "stage.1.fuse.norm.weight": (16,),
    "stage.1.fuse.dominant.weight": (16, 32),
    "stage.1.fuse.common.bias": (16,),
    "head.fc1.weight": (1024, 16384),
    "head.fc2.weight": (7, 1024),
}


def test_roles_and_their_shapes_do_not_change() -> None:
    shapes = role_shapes(build_model("das2f-reference-1"))
    assert {role: shapes[role] for role in ROLES} == ROLES
    assert not any("num_batches" in role for role in shapes)
    assert "stage.1.cross.ms.scan.norm.weight" not in shapes
    assert len(shapes) == 108


def test_weights_go_round_by_role() -> None:
    one, two = build_model("das2f-reference-1").eval(), build_model("das2f-reference-1").eval()
    arrays = export_roles(one)
    role = "stage.1.own.ms.scan.A_log"
    load_roles(two, {**arrays, role: arrays[role].reshape(256, 24)})
    ms, pan = torch.randn(1, 4, 16, 16), torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(one(ms, pan), two(ms, pan))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a.pop("head.fc2.bias"), "head.fc2.bias"),
        (lambda a: a.update({"head.fc9.bias": np.zeros(3)}), "head.fc9.bias"),
        (lambda a: a.update({"embed.ms.norm.bias": np.zeros(63)}), "embed.ms.norm.bias"),
        (lambda a: a.update({"embed.ms.norm.bias": np.full(64, np.nan)}), "embed.ms.norm.bias"),
    ],
)
def test_bad_roles_are_named_and_nothing_is_copied(change, named: str) -> None:  # type: ignore[no-untyped-def]
    model = build_model("das2f-reference-1")
    before = export_roles(model)
    arrays = {role: array + 1 for role, array in before.items()}
    change(arrays)
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        load_roles(model, arrays)
    after = export_roles(model)
    assert all(np.array_equal(before[role], after[role]) for role in before)


def test_fusion_equals_its_outer_product() -> None:
    torch.manual_seed(0)
    fuse = ReferenceFuse(16).double()
    da, db, f = (torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(3))
    w = {name: p.detach().numpy() for name, p in fuse.named_parameters()}

    def norm(x: torch.Tensor) -> Array:
        return layer_norm(x.numpy().reshape(-1, 16), w, "norm")

    x = outer_mean(norm(da), norm(db), w, "dominant")
    expected = outer_mean(layer_norm(x, w, "norm"), norm(f), w, "common")
    found = fuse([da, db], f).detach().numpy().reshape(-1, 16)
    np.testing.assert_allclose(found, expected, atol=1e-14)


# -- the general network -------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "bands"), [(1, 3), (2, 6), (3, 1), (4, 8), (5, 4)])
@pytest.mark.parametrize("resolution", ["ms", "pan"])
def test_any_ratio_and_bands(ratio: int, bands: int, resolution: str) -> None:
    model = DAS2F(5, bands=bands, ratio=ratio, resolution=resolution)  # type: ignore[arg-type]
    logits = model(torch.randn(2, bands, 20, 18), torch.randn(2, 1, 20 * ratio, 18 * ratio))
    factor = ratio if resolution == "pan" else 1
    assert logits.shape == (2, 5, 20 * factor, 18 * factor)
    assert model.factor == factor
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_class_does_not_depend_on_the_tile() -> None:
    torch.manual_seed(0)
    model = DAS2F(3, bands=2, ratio=2).eval()
    ms, pan = torch.randn(1, 2, 128, 128), torch.randn(1, 1, 256, 256)
    halo = model.align * -(-model.halo // model.align)
    y0, x0 = 48, 64
    with torch.no_grad():
        whole = model(ms, pan)
        top, left = y0 - halo, x0 - halo
        bottom, right = y0 + 16 + halo, x0 + 16 + halo
        part = model(
            ms[..., top:bottom, left:right], pan[..., 2 * top : 2 * bottom, 2 * left : 2 * right]
        )
    inner = part[..., halo : halo + 16, halo : halo + 16]
    torch.testing.assert_close(inner, whole[..., y0 : y0 + 16, x0 : x0 + 16], rtol=0, atol=1e-6)


@pytest.mark.parametrize("swap", ["all", "dBC"])
@pytest.mark.parametrize("fusion", ["reference", "vector"])
def test_batched_equals_single(swap: str, fusion: str) -> None:
    model = DAS2F(3, bands=2, ratio=2, size={"swap": swap}, fusion=fusion).eval()  # type: ignore[arg-type]
    ms, pan = torch.randn(3, 2, 16, 32), torch.randn(3, 1, 32, 64)
    with torch.no_grad():
        together = model(ms, pan)
        alone = torch.cat([model(ms[i : i + 1], pan[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_shift_by_one_pixel_shifts_the_tokens() -> None:
    model = DAS2F(3, bands=2, ratio=4).eval()
    ms, pan = torch.randn(1, 2, 12, 12), torch.randn(1, 1, 48, 48)
    for sensor, image, step in (("ms", ms, 1), ("pan", pan, 4)):
        with torch.no_grad():
            here = model.embed[sensor](image)
            there = model.embed[sensor](image.roll(step, dims=-1))
        torch.testing.assert_close(here[:, 2:-2, 2:-3], there[:, 2:-2, 3:-2], rtol=0, atol=0)


def test_wrong_sizes_are_explained() -> None:
    model = DAS2F(3, bands=2, ratio=4)
    with pytest.raises(InputError, match="4 times as large"):
        model(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match="patches of 16 x 16"):
        build_model("das2f-reference-1")(torch.zeros(1, 4, 32, 32), torch.zeros(1, 1, 128, 128))
    with pytest.raises(InputError, match="unknown"):
        build_model("das3f")
    with pytest.raises(InputError, match="does not take"):
        build_model("das2f", classes=3, wdith=4)
    with pytest.raises(InputError, match="multiple of cell"):
        DAS2F(3, size={"width": 20})
