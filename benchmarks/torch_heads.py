"""Layers and heads of `torch_network`: norms, convolutions, heatmap head, score head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rahf.config import HeatmapHeadConfig, ScoreHeadConfig


class RMSNorm(nn.Module):
    """Statistics in float32, as in T5."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.scale).to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.scale, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale.to(x.dtype), self.bias.to(x.dtype), self.eps)


class ChannelNorm(nn.Module):
    """A norm over the channels of [B,C,H,W]."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.norm = LayerNorm(width) if kind == "layer" else RMSNorm(width, 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Conv(nn.Conv2d):
    """Padding as TensorFlow's SAME: what is left over goes to the end."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: str = "SAME"):
        super().__init__(inputs, outputs, size, stride, (size - 1) // 2 if stride == 1 and size % 2 else 0)
        total = size - stride if padding == "SAME" and not (stride == 1 and size % 2) else 0
        self.before, self.after = total // 2, total - total // 2
        if padding == "VALID":
            self.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.before, self.after) * 2) if self.after else x)


class UpStage(nn.Module):
    def __init__(self, inputs: int, width: int, c: HeatmapHeadConfig):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, width, 3, stride=2, padding=1, output_padding=1)
        self.conv1, self.conv2 = Conv(width, width), Conv(width, width)
        self.norm_up, self.norm1, self.norm2 = (ChannelNorm(c.norm, width) for _ in range(3))
        self.residual = c.residual

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_up(self.up(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + y if self.residual else y)


class HeatmapHead(nn.Module):
    def __init__(self, width: int, side: int, stages: tuple[int, ...], c: HeatmapHeadConfig):
        super().__init__()
        for number, out in enumerate(c.conv_widths):
            self.add_module(f"conv_{number}", Conv(width, out))
            self.add_module(f"norm_{number}", ChannelNorm(c.norm, out))
            width = out
        for number, out in enumerate(stages):
            self.add_module(f"up_{number}", UpStage(width, out, c))
            width = out
        self.last, self.out, self.c, self.stages, self.side = Conv(width, width), Conv(width, 1), c, len(stages), side

    def forward(self, x: Tensor) -> Tensor:
        for n in range(len(self.c.conv_widths)):
            x, norm = getattr(self, f"conv_{n}")(x), getattr(self, f"norm_{n}")
            x = norm(F.relu(x)) if self.c.relu_before_norm else F.relu(norm(x))
        for n in range(self.stages):
            x = getattr(self, f"up_{n}")(x)
        x = self.out(F.relu(self.last(x))).float()
        return F.interpolate(x, (self.side, self.side), mode="bilinear")[:, 0] if x.shape[-1] != self.side else x[:, 0]


class ScoreHead(nn.Module):
    def __init__(self, width: int, grid: int, c: ScoreHeadConfig):
        super().__init__()
        for number, out in enumerate(c.conv_widths):
            self.add_module(f"conv_{number}", Conv(width, out, c.kernel_size, padding=c.padding))
            self.add_module(f"norm_{number}", ChannelNorm(c.norm, out))
            width = out
        grid -= (c.kernel_size - 1) * len(c.conv_widths) if c.padding == "VALID" else 0
        width *= (c.pool or grid) ** 2
        for number, out in enumerate(c.dense_widths):
            self.add_module(f"dense_{number}", nn.Linear(width, out))
            width = out
        self.out, self.c = nn.Linear(width, 1), c

    def forward(self, x: Tensor) -> Tensor:
        for n in range(len(self.c.conv_widths)):
            x = F.relu(getattr(self, f"norm_{n}")(getattr(self, f"conv_{n}")(x)))
        if self.c.pool:
            x = F.avg_pool2d(x, x.shape[-1] // self.c.pool)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for n in range(len(self.c.dense_widths)):
            x = F.relu(getattr(self, f"dense_{n}")(x))
        return self.out(x)[:, 0].float()
