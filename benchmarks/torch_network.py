"""The network of `rahf.nn` once more in plain PyTorch, written from the paper's description, to be compared with.

Modules have the names of our parameters, so that `load` can copy them and a test can compare outputs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_heads import ChannelNorm, Conv, HeatmapHead, LayerNorm, RMSNorm, ScoreHead

from rahf.config import Config, CriticConfig, T5Config, ViTConfig

HEATMAPS = ("implausibility", "misalignment")
SCORES = ("plausibility", "alignment", "aesthetics", "overall")


class ViTBlock(nn.Module):
    def __init__(self, c: ViTConfig):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(c.width, c.layer_norm_eps), LayerNorm(c.width, c.layer_norm_eps)
        self.query, self.key, self.value, self.out = (nn.Linear(c.width, c.width) for _ in range(4))
        self.wi, self.wo = nn.Linear(c.width, c.mlp_width), nn.Linear(c.mlp_width, c.width)
        self.heads = c.heads

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.wo(F.gelu(self.wi(self.norm2(x))))


class StemStage(nn.Module):
    def __init__(self, inputs: int, width: int, blocks: int):
        super().__init__()
        self.conv, self.norm, self.blocks = Conv(inputs, width, stride=2), ChannelNorm("layer", width), blocks
        for number in range(blocks):
            self.add_module(f"block_{number}", Conv(width, width))
            self.add_module(f"block_norm_{number}", ChannelNorm("layer", width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for n in range(self.blocks):
            x = F.relu(x + getattr(self, f"block_norm_{n}")(getattr(self, f"block_{n}")(x)))
        return x


class ViT(nn.Module):
    def __init__(self, c: ViTConfig, side: int):
        super().__init__()
        self.c, channels = c, 3
        for number, width in enumerate(c.stem):
            self.add_module(f"stem_{number}", StemStage(channels, width, c.stem_blocks))
            channels = width
        self.patch = c.patch_size // 2 ** len(c.stem)
        self.embed = nn.Linear(self.patch**2 * channels, c.width)
        self.position = nn.Parameter(0.02 * torch.randn((side // c.patch_size) ** 2 + c.class_token, c.width))
        if c.class_token:
            self.class_token = nn.Parameter(torch.zeros(c.width))
        for number in range(c.depth):
            self.add_module(f"layer_{number}", ViTBlock(c))
        self.norm = LayerNorm(c.width, c.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(len(self.c.stem)):
            x = getattr(self, f"stem_{number}")(x)
        p = self.patch
        x = x.unflatten(2, (-1, p)).unflatten(4, (-1, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        x = self.embed(x)
        if self.c.class_token:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = x + self.position.to(x.dtype)
        for number in range(self.c.depth):
            x = getattr(self, f"layer_{number}")(x)
        return self.norm(x)


class Attention(nn.Module):
    """T5's: no scale, no biases."""

    def __init__(self, c: T5Config):
        super().__init__()
        inner = c.heads * c.head_width
        self.query, self.key, self.value = (nn.Linear(c.width, inner, bias=False) for _ in range(3))
        self.out, self.heads = nn.Linear(inner, c.width, bias=False), c.heads

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, c: T5Config):
        super().__init__()
        self.wi, self.wo = nn.Linear(c.width, c.mlp_width, bias=False), nn.Linear(c.mlp_width, c.width, bias=False)
        if c.ff == "gated-gelu":
            self.gate = nn.Linear(c.width, c.mlp_width, bias=False)
        self.gated = c.ff == "gated-gelu"

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.gate(x), approximate="tanh") * self.wi(x) if self.gated else F.relu(self.wi(x)))


class Block(nn.Module):
    def __init__(self, c: T5Config, cross: bool):
        super().__init__()
        self.norm1, self.attention = RMSNorm(c.width), Attention(c)
        self.norm2, self.ff = RMSNorm(c.width), FeedForward(c)
        if cross:
            self.cross, self.norm3 = Attention(c), RMSNorm(c.width)
        self.crosses = cross

    def forward(
        self, x: Tensor, bias: Tensor, memory: Tensor | None = None, cross_bias: Tensor | None = None
    ) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, bias)
        if not self.crosses:
            return x + self.ff(self.norm2(x))
        x = x + self.cross(self.norm2(x), memory, cross_bias)
        return x + self.ff(self.norm3(x))


class RelativeBias(nn.Module):
    """Exact buckets for near distances, logarithmic ones for far (T5, section 2.1)."""

    def __init__(self, c: T5Config, both: bool):
        super().__init__()
        self.table = nn.Parameter(c.width**-0.5 * torch.randn(c.relative_buckets, c.heads))
        self.c, self.both = c, both

    def forward(self, length: int) -> Tensor:
        distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        buckets = self.c.relative_buckets // 2 if self.both else self.c.relative_buckets
        start = buckets * (distance > 0) if self.both else 0
        distance = distance.abs() if self.both else (-distance).clamp(min=0)
        exact = buckets // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.c.relative_max_distance / exact)
        far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        index = (start + torch.where(distance < exact, distance, far)).to(self.table.device)
        return self.table[index].permute(2, 0, 1)[None]


class Stack(nn.Module):
    def __init__(self, c: T5Config, decoder: bool):
        super().__init__()
        self.relative_bias, self.count = RelativeBias(c, not decoder), c.decoder_layers if decoder else c.encoder_layers
        for number in range(self.count):
            self.add_module(f"layer_{number}", Block(c, decoder))
        self.norm, self.decoder = RMSNorm(c.width), decoder

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        padding = torch.zeros(mask.shape, device=x.device).masked_fill(~mask, -1e9)[:, None, None]
        bias = self.relative_bias(x.shape[1])
        if self.decoder:
            later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            bias = bias.masked_fill(later, -1e9)
        else:
            bias = bias + padding
        for number in range(self.count):
            x = getattr(self, f"layer_{number}")(x, bias, memory, padding)
        return self.norm(x)


class Rahf(nn.Module):
    """Image in [0,1], prompt and target ids → heatmap, score and sequence logits."""

    def __init__(self, c: CriticConfig, stages: tuple[int, ...]):
        super().__init__()
        self.c, self.grid, width = c, c.image_size // c.vit.patch_size, c.t5.width
        self.vit, self.projection = ViT(c.vit, c.image_size), nn.Linear(c.vit.width, width)
        self.embedding = nn.Parameter(torch.randn(c.t5.vocab_size, width))
        self.encoder, self.decoder = Stack(c.t5, False), Stack(c.t5, True)
        if not c.t5.tie_embeddings:
            self.output = nn.Parameter(width**-0.5 * torch.randn(width, c.t5.vocab_size))
        for name in HEATMAPS:
            self.add_module(f"heatmap_{name}", HeatmapHead(width, c.image_size, stages, c.heatmap_head))
        for name in SCORES:
            self.add_module(f"score_{name}", ScoreHead(width, self.grid, c.score_head))

    def fuse(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Grid of image tokens, all tokens, their mask, number of image tokens."""
        tokens = self.projection(self.vit(image))
        n = tokens.shape[1]
        x = torch.cat([tokens, F.embedding(text_ids, self.embedding).to(tokens.dtype)], 1)
        mask = torch.cat([torch.ones_like(text_mask[:, :1]).expand(-1, n), text_mask], 1)
        x = self.encoder(x, mask)
        grid = x[:, n - self.grid**2 : n].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return grid, x, mask, n

    def scores(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Logits of the four scores and nothing else."""
        grid = self.fuse(image, text_ids, text_mask)[0]
        return torch.stack([getattr(self, f"score_{name}")(grid) for name in SCORES], -1)

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor, target_ids: Tensor):
        grid, x, mask, n = self.fuse(image, text_ids, text_mask)
        heatmaps = torch.stack([getattr(self, f"heatmap_{name}")(grid) for name in HEATMAPS], -1)
        scores = torch.stack([getattr(self, f"score_{name}")(grid) for name in SCORES], -1)
        if self.c.decoder_sees == "text":
            x, mask = x[:, n:], mask[:, n:]
        inputs = F.embedding(F.pad(target_ids[:, :-1], (1, 0)), self.embedding).to(x.dtype)
        hidden = self.decoder(inputs, mask, x)
        if self.c.t5.tie_embeddings:
            return heatmaps, scores, (hidden * self.c.t5.width**-0.5) @ self.embedding.T.to(hidden.dtype)
        return heatmaps, scores, hidden @ self.output.to(hidden.dtype)


def loss(config: Config, outputs: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The loss of `rahf.critic.losses.total` behind every warm-up, for batches in which no label is missing."""
    c, (heatmaps, scores, sequence) = config.loss, outputs
    kinds = {"bce": F.binary_cross_entropy_with_logits, "mse": lambda x, y: F.mse_loss(x.sigmoid(), y)}
    total = c.heatmap_weight * kinds[c.heatmap_loss](heatmaps, batch["heatmaps"])
    total = total + c.score_weight * kinds[c.score_loss](scores, batch["scores"])
    words = F.cross_entropy(sequence.float().flatten(0, 1), batch["target_ids"].flatten(), reduction="none")
    weights = batch["target_mask"].flatten().float()
    return total + c.keyword_weight * (words * weights).sum() / weights.sum().clamp(min=1)


def load(network: Rahf, flat: dict[str, np.ndarray]) -> None:
    """Copies the parameters of our network into this one.

    Args:
      network: the network to fill.
      flat: parameters of our network by path.

    Raises:
      KeyError: a parameter is missing on either side.
    """
    left = dict(flat)
    for name, parameter in network.named_parameters():
        path = name.replace(".norm.scale", ".scale").replace(".norm.bias", ".bias") if ".norm." in name else name
        path = (path if path.replace(".", "/") in left else name).replace(".", "/")
        if path not in left:
            path = path.removesuffix("weight") + "kernel"
        value = np.asarray(left.pop(path))
        if path.endswith("kernel"):
            value = value.T if value.ndim == 2 else value.transpose((2, 3, 0, 1) if "/up/" in path else (3, 2, 0, 1))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    if left:
        raise KeyError(f"not in the PyTorch network: {', '.join(sorted(left))}")
