"""Exact shorter forms of a finished DAS2F network; nothing here changes a result.

Training and storage keep the long forms. What is folded is a copy.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.classification.model import DAS2F, Embed, FlattenHead, SlidingHead
from rsfuse.errors import InputError
from rsfuse.nn.ssm import Local


def collapsed_head(head: FlattenHead) -> tuple[Tensor, Tensor]:
    """Weight (K, positions x channels) and bias (K,) of the two linear layers as one.

    There is no activation between them, so W = W2 W1 and b = W2 b1 + b2. Computed in float64.
    """
    w1, w2 = head.fc1.weight.double(), head.fc2.weight.double()
    b1, b2 = head.fc1.bias.double(), head.fc2.bias.double()
    return w2 @ w1, w2 @ b1 + b2


@torch.no_grad()
def with_sliding_head(model: DAS2F) -> DAS2F:
    """The network of a patch as one of a tile: its head becomes a convolution of stride 2.

    Every MS pixel gets the class that the patch around it would have had, but for the features near
    the borders of patches, which see their real neighbours now. The pixel of a patch of w is that
    at index (w - 1) // 2.

    Raises:
        InputError: The network has another head.
    """
    if not isinstance(model.head, FlattenHead):
        raise InputError(
            f"a network with a {model.head_kind} head",
            "only the flatten head can become a sliding one",
            "dense networks map tiles as they are",
        )
    weight, bias = collapsed_head(model.head)
    side = 2 * model.size.window
    channels = model.size.width // 4
    head = SlidingHead(model.size.window, channels, len(bias)).to(model.head.fc1.weight.dtype)
    kernel = weight.reshape(len(bias), side, side, channels).permute(0, 3, 1, 2)
    head.conv.weight.copy_(kernel)
    head.conv.bias.copy_(bias)  # type: ignore[union-attr]
    made = copy.deepcopy(model)
    made.head, made.head_kind = head, "sliding"
    made.halo = model.halo + model.size.window
    return made.train(model.training)


@torch.no_grad()
def ms_embedding_kernel(conv: nn.Conv2d) -> Tensor:
    """(out, in, 3, 3): "bilinear x r, then r x r with stride r" as one convolution on the MS grid.

    It needs replicate padding; the bias is that of the convolution.
    """
    ratio = conv.kernel_size[0]
    share = torch.zeros(ratio, 3, dtype=torch.float64)
    for s in range(ratio):
        t = (s + 0.5) / ratio - 0.5
        share[s] = torch.tensor([-t, 1 + t, 0.0] if t < 0 else [0.0, 1 - t, t], dtype=share.dtype)
    return torch.einsum("ocst,sd,te->ocde", conv.weight.double(), share, share)


@torch.no_grad()
def pan_embedding_kernel(lift: nn.Conv2d, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, P, r, r) and bias (out,): the 1 x 1 lift and the r x r convolution as one."""
    first = lift.weight.double()[:, :, 0, 0]
    kernel = torch.einsum("ocst,cp->opst", conv.weight.double(), first)
    offset = torch.einsum("ocst,c->o", conv.weight.double(), lift.bias.double())  # type: ignore[union-attr]
    return kernel, conv.bias.double() + offset  # type: ignore[union-attr]


@torch.no_grad()
def without_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution and the BatchNorm after it as one convolution, for evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    made = copy.deepcopy(conv)
    made.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    offset = conv.bias.double() - norm.running_mean.double()  # type: ignore[union-attr]
    made.bias.copy_(offset * scale + norm.bias.double())  # type: ignore[union-attr]
    return made


class FoldedMS(nn.Module):
    """MS tokens by one 3 x 3 convolution on the MS grid; nothing is resampled."""

    weight: Tensor
    bias: Tensor

    def __init__(self, embed: Embed) -> None:
        super().__init__()
        assert embed.conv.bias is not None
        self.register_buffer("weight", ms_embedding_kernel(embed.conv).to(embed.conv.weight.dtype))
        self.register_buffer("bias", embed.conv.bias.detach().clone())
        self.norm = copy.deepcopy(embed.norm)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H, W, D)."""
        around = F.pad(image, (1, 1, 1, 1), mode="replicate")
        tokens: Tensor = self.norm(F.conv2d(around, self.weight, self.bias).permute(0, 2, 3, 1))
        return tokens


class FoldedPAN(nn.Module):
    """PAN tokens by one convolution of side and stride r; nothing is lifted."""

    weight: Tensor
    bias: Tensor

    def __init__(self, embed: Embed) -> None:
        super().__init__()
        weight, bias = pan_embedding_kernel(embed.lift, embed.conv)
        self.stride = embed.ratio
        self.register_buffer("weight", weight.to(embed.conv.weight.dtype))
        self.register_buffer("bias", bias.to(embed.conv.weight.dtype))
        self.norm = copy.deepcopy(embed.norm)

    def forward(self, image: Tensor) -> Tensor:
        """(B, P, r H, r W) to (B, H, W, D)."""
        made = F.conv2d(image, self.weight, self.bias, stride=self.stride)
        tokens: Tensor = self.norm(made.permute(0, 2, 3, 1))
        return tokens


@torch.no_grad()
def folded(model: DAS2F) -> DAS2F:
    """A copy for evaluation with every short form: embeddings, BatchNorm and the flatten head.

    It gives the numbers of `model.eval()` but for rounding. It holds no roles and is not for
    training: its statistics and long forms are gone.
    """
    made = copy.deepcopy(model).eval()
    made.embed["ms"] = FoldedMS(model.embed["ms"])  # type: ignore[arg-type]
    made.embed["pan"] = FoldedPAN(model.embed["pan"])  # type: ignore[arg-type]
    for part in made.modules():
        if isinstance(part, Local) and isinstance(part.bn, nn.BatchNorm2d):
            part.fold, part.bn = without_batch_norm(part.fold, part.bn), nn.Identity()
    if isinstance(made.head, FlattenHead):
        weight, bias = collapsed_head(made.head)
        line = nn.Linear(weight.shape[1], weight.shape[0]).to(made.head.fc1.weight.dtype)
        line.weight.copy_(weight)
        line.bias.copy_(bias)
        made.head = nn.Sequential(nn.Flatten(), line)
    return made.requires_grad_(False)
