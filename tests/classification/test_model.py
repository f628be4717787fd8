"""Gradients and precision of the published networks, against a transcription of their own."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.classification.model import build_model
from rsfuse.classification.roles import export_roles, load_roles
from rsfuse.engine.seeds import seeded
from rsfuse.errors import InputError

Weights = dict[str, Tensor]

# -- the reference document once more, in plain differentiable operators: every outer product is
# -- formed, the scan goes step by step, and no code of the package takes part


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def dense(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def local(x: Tensor, w: Weights, name: str, train: bool) -> Tensor:
    """Tokens (B, 16, 16, 64) to u (B, 64, 16, 16)."""
    b = len(x)
    # channel c * 16 + i * 4 + j of token (h, v) is pixel (4 h + i, 4 v + j) of latent channel c
    pixels = x.reshape(b, 16, 16, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, 4, 64, 64)
    kernel, bias = w[f"{name}.depthwise.weight"], w[f"{name}.depthwise.bias"]
    pixels = F.silu(F.conv2d(pixels, kernel, bias, padding=1, groups=4))
    u = F.conv2d(pixels, w[f"{name}.fold.weight"], w[f"{name}.fold.bias"], stride=4)
    mean, var = w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"]
    if train:
        mean, var = u.mean((0, 2, 3)), u.var((0, 2, 3), unbiased=False)
    u = (u - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return u * w[f"{name}.bn.weight"][:, None, None] + w[f"{name}.bn.bias"][:, None, None]


def one_scan(u: Tensor, of: Tensor, w: Weights, name: str, k: int) -> Tensor:
    """u (B, 64, 256) filtered by direction k of the set `name`, computed from `of`."""
    made = w[f"{name}.x_proj"][k] @ of
    low, into, out = made[:, :24], made[:, 24:48], made[:, 48:]
    delta = F.softplus(w[f"{name}.dt_weight"][k] @ low + w[f"{name}.dt_bias"][k][:, None])
    rates = -w[f"{name}.A_log"][k].exp()
    h, y = torch.zeros(len(u), 64, 24, dtype=u.dtype), []
    for t in range(256):
        pushed = (delta[..., t] * u[..., t])[..., None] * into[:, None, :, t]
        h = (delta[..., t, None] * rates).exp() * h + pushed
        y.append((h @ out[:, :, t, None])[..., 0] + w[f"{name}.D"][k] * u[..., t])
    return torch.stack(y, -1)


def four(u: Tensor, of: Tensor, w: Weights, name: str) -> Tensor:
    """The sum of the four directions in image order (B, 16, 16, 64)."""
    index = torch.arange(256).reshape(16, 16)
    orders = [index.flatten(), index.T.flatten()]
    orders += [order.flip(0) for order in orders]
    total = torch.zeros(len(u), 64, 256, dtype=u.dtype)
    for k, order in enumerate(orders):
        y = one_scan(u.flatten(2)[..., order], of.flatten(2)[..., order], w, name, k)
        back = torch.empty(256, dtype=torch.long)
        back[order] = torch.arange(256)
        total = total + y[..., back]
    return total.reshape(len(u), 64, 16, 16).permute(0, 2, 3, 1)


def finished(x: Tensor, seen: Tensor, y: Tensor, w: Weights, at: str, pre: str) -> Tensor:
    """Gate, output, residuals and MLP; `pre` names the norm before the MLP, `y` is normed."""
    t = x + dense(y * F.silu(dense(seen, w, f"{at}.gate")), w, f"{at}.out")
    return t + dense(F.gelu(dense(norm(t, w, pre), w, f"{at}.mlp.fc1")), w, f"{at}.mlp.fc2")


def stage(a: Tensor, b: Tensor, w: Weights, at: str, train: bool) -> tuple[Tensor, ...]:
    """Common and dominant features: ca, cb, da, db."""
    own, shared, u = {}, {}, {}
    for m, x in (("ms", a), ("pan", b)):
        name = f"{at}.own.{m}"
        seen = norm(x, w, f"{name}.norm")
        v = local(seen, w, f"{name}.local", train)
        y = norm(four(v, v, w, f"{name}.scan"), w, f"{name}.scan.norm")
        own[m] = finished(x, seen, y, w, name, f"{name}.norm")
        shared[m] = norm(x, w, f"{at}.cross.norm")
        u[m] = local(shared[m], w, f"{at}.cross.{m}.local", train)
    common = {}
    for m, x, other in (("ms", a, "pan"), ("pan", b, "ms")):
        y = norm(four(u[m], u[other], w, f"{at}.cross.{other}.scan"), w, f"{at}.cross.scan_norm")
        common[m] = finished(x, shared[m], y, w, f"{at}.cross.{m}", f"{at}.cross.norm")
    return common["ms"], common["pan"], own["ms"] - common["ms"], own["pan"] - common["pan"]


def cells(x: Tensor) -> Tensor:
    """Channel c * 4 + i * 2 + j of (h, v) to sub-pixel (2 h + i, 2 v + j): (B, 1024, 16)."""
    return x.reshape(-1, 16, 16, 16, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(-1, 1024, 16)


def averaged(p: Tensor, q: Tensor, w: Weights, name: str) -> Tensor:
    gate = torch.sigmoid(dense(torch.cat([p, q], -1), w, name))
    return ((p * gate)[..., :, None] * q[..., None, :]).mean(-2)


def transcribed(w: Weights, ms: Tensor, pan: Tensor, stages: int, train: bool) -> Tensor:
    up = F.interpolate(ms, size=(64, 64), mode="bilinear", align_corners=False)
    lifted = F.conv2d(pan, w["embed.pan.lift.weight"], w["embed.pan.lift.bias"])
    tokens = []
    for m, image in (("ms", up), ("pan", lifted)):
        made = F.conv2d(image, w[f"embed.{m}.conv.weight"], w[f"embed.{m}.conv.bias"], stride=4)
        tokens.append(norm(made.permute(0, 2, 3, 1), w, f"embed.{m}.norm"))
    a, b = tokens
    dominant = []
    for s in range(1, stages + 1):
        a, b, da, db = stage(a, b, w, f"stage.{s}", train)
        dominant.append((cells(da), cells(db)))
    f = cells((a + b) / 2)
    for s in range(stages, 0, -1):
        da, db = (norm(d, w, f"stage.{s}.fuse.norm") for d in dominant[s - 1])
        x = averaged(da, db, w, f"stage.{s}.fuse.dominant")
        x, f = (norm(v, w, f"stage.{s}.fuse.norm") for v in (x, f))
        f = averaged(x, f, w, f"stage.{s}.fuse.common")
    return dense(dense(f.flatten(1), w, "head.fc1"), w, "head.fc2")


def perturbed(model: torch.nn.Module) -> Weights:
    """Every weight and statistic moved, so that nothing hides behind ones and zeros."""
    random = np.random.default_rng(5)
    made = {}
    for role, array in export_roles(model).items():
        scale = 0.1 * np.abs(array).mean() + 0.02
        moved = array.astype(np.float32) + scale * random.standard_normal(array.shape)
        moved = np.abs(moved) if role.endswith("running_var") else moved
        made[role] = torch.from_numpy(moved.astype(np.float32))  # float32 holds them exactly
    return made


# A bias before a BatchNorm that takes the mean away has no effect: its gradient is rounding alone.
WITHOUT_EFFECT = ".local.fold.bias"


@pytest.mark.parametrize(("stages", "train"), [(1, False), (1, True), (2, False), (2, True)])
def test_published_networks_to_rounding(stages: int, train: bool) -> None:
    with seeded(stages):
        model = build_model(f"das2f-reference-{stages}").train(train)
    arrays = perturbed(model)
    load_roles(model, arrays)
    random = torch.Generator().manual_seed(1)
    ms, pan = (torch.randn(2, c, s, s, generator=random) for c, s in ((4, 16), (1, 64)))
    with torch.no_grad():
        single = model(ms, pan).double()
    load_roles(model.double(), arrays)
    w = {role: x.double().requires_grad_("running" not in role) for role, x in arrays.items()}
    expected = transcribed(w, ms.double(), pan.double(), stages, train)
    found = model(ms.double(), pan.double())
    top = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * top)
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-5 * max(top, 1.0))
    share = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    (found * share).sum().backward()
    (expected * share).sum().backward()
    for role, parameter in model.named_parameters():
        wanted = w[role].grad
        assert parameter.grad is not None, role
        assert wanted is not None, role
        of = w[role.replace("bias", "weight")].grad if role.endswith(WITHOUT_EFFECT) else wanted
        assert of is not None, role
        size = of.abs().max().item()
        assert size > 0, role
        difference = (parameter.grad - wanted).abs().max().item()
        assert difference <= 1e-10 * size, (role, difference / size)


def test_rates_and_skips_do_not_decay() -> None:
    model = build_model("das2f-reference-1")
    left_out = {n for n, p in model.named_parameters() if getattr(p, "no_weight_decay", False)}
    scans = [f"stage.1.{kind}.{m}.scan" for kind in ("own", "cross") for m in ("ms", "pan")]
    assert left_out == {f"{scan}.{name}" for scan in scans for name in ("A_log", "D", "dt_bias")}


def test_what_a_new_scan_starts_from() -> None:
    scan = build_model("das2f-reference-1").stage["1"].own["ms"].scan
    steps = F.softplus(scan.dt_bias)
    assert 9.9e-4 < steps.min() < 2e-3  # log-uniform in [0.001, 0.1]: 256 draws reach both ends
    assert 5e-2 < steps.max() < 0.101
    assert 0.006 < steps.log().mean().exp() < 0.017
    torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 25).expand(4, 64, 24))
    assert (scan.D == 1).all()
    assert 0.95 * 24**-0.5 < scan.dt_weight.abs().max() <= 24**-0.5
    assert 0.95 * 64**-0.5 < scan.x_proj.abs().max() <= 64**-0.5


def test_the_general_network_is_small() -> None:
    assert sum(p.numel() for p in build_model("das2f", classes=11).parameters()) < 500_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"fusion": "vectro"}, "fusion 'vectro'"),
        ({"head": "dens"}, "head 'dens'"),
        ({"resolution": "PAN"}, "resolution 'PAN'"),
        ({"size": {"swap": "ALL"}}, "swap 'ALL'"),
        ({"size": {"norm": "group"}}, "norm 'group'"),
        ({"size": {"rank": 0}}, "rank=0"),
        ({"size": {"mlp": 0}}, "mlp=0"),
        ({"head": "flatten", "size": {"window": 0}}, "flatten head with window 0"),
        ({"head": "sliding", "resolution": "pan"}, "sliding head with resolution pan"),
    ],
)
def test_misspelt_arguments_build_no_other_network(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        build_model("das2f", classes=3, **arguments)
    assert named in str(caught.value)


@pytest.mark.parametrize("resolution", ["ms", "pan"])
@pytest.mark.parametrize("norm_kind", ["batch", "layer"])
def test_every_weight_of_a_tile_with_sparse_labels_learns(norm_kind: str, resolution: str) -> None:
    torch.manual_seed(0)
    size = {"norm": norm_kind, "window": 8, "swap": "dBC", "shared_norms": False}
    model = build_model(
        "das2f", classes=3, bands=2, pan_bands=2, ratio=2, size=size, resolution=resolution
    )
    logits = model(torch.randn(2, 2, 11, 9), torch.randn(2, 2, 22, 18))
    labels = torch.full(logits.shape[:1] + logits.shape[2:], -1)
    labels[:, ::4, ::3] = torch.randint(0, 3, labels[:, ::4, ::3].shape)
    F.cross_entropy(logits, labels, ignore_index=-1).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
