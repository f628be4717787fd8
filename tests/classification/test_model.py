"""Gradients and precision of the published networks, against a transcription of their own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.classification.model import build_model
from rsfuse.classification.roles import export_roles, load_roles

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
        y = norm(
            four(u[m], u[other], w, f"{at}.cross.{other}.scan"), w, f"{at}.cross.scan_norm"
        )
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


@pytest.mark.parametrize(("stages", "train"), [(1, False), (1, True), (2, False), (2, True)])
def test_published_networks_to_rounding(stages: int, train: bool) -> None:
    model = build_model(f"das2f-reference-{stages}").train(train)
    arrays = perturbed(model)
    load_roles(model, {role: x.numpy() for role, x in arrays.items()})
    random = torch.Generator().manual_seed(1)
    ms, pan = (torch.randn(2, c, s, s, generator=random) for c, s in ((4, 16), (1, 64)))
    with torch.no_grad():
        single = model(ms, pan)
    load_roles(model, {role: x.numpy() for role, x in arrays.items()})
    model.double()
    w = {
        role: x.double().requires_grad_("running" not in role) for role, x in arrays.items()
    }
    expected = transcribed(w, ms.double(), pan.double(), stages, train)
    found = model(ms.double(), pan.double())
    top = expected.abs().max().item()
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    print("f64", (found-expected).abs().max().item()/top, "f32", (single-expected).abs().max().item()/top)
    worst = []
    for role, parameter in model.named_parameters():
        assert parameter.grad is not None
        wanted = w[role].grad
        assert wanted is not None
        size = wanted.abs().max().item()
        assert size > 0, role
        worst.append(((parameter.grad - wanted).abs().max().item()/size, role))
    print(sorted(worst)[-4:])
