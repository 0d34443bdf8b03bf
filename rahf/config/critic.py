"""The critic families: the paper's network and the baselines of its tables; the towers and heads that they share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.model import ImageModelConfig


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Vision transformer (Dosovitskiy et al. 2021), pre-norm, learned or rotary positions."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    class_token: bool = False  # joins the sequence in front of the patches; dropped before the heads
    layer_norm_eps: float = 1e-6
    stem: tuple[int, ...] = ()  # widths of stride-2 3x3 convolutions before the patch embedding
    stem_blocks: int = 0  # residual 3x3 convolutions behind each of them
    dropout: float = 0.0
    activation: Literal["gelu", "gelu-tanh", "quick-gelu", "silu"] = "gelu"  # SigLIP: tanh; CLIP: x sigmoid(1.702 x)
    layer_scale: bool = False  # a learned factor per channel on each residual branch (DINOv2, DINOv3)
    pre_norm: bool = False  # one more layer normalization in front of the first layer (CLIP)
    registers: int = 0  # learned tokens between the class token and the patches, dropped before the heads (DINOv3)
    rope_theta: float = 0.0  # base of rotary positions of the patches (DINOv3: 100); 0: learned position embeddings
    gated_mlp: bool = False  # down(activation(gate(x)) · up(x)) (DINOv3 huge and larger)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 encoder and decoder. Defaults: the shapes of T5 v1.1 base."""

    vocab_size: int = 32128
    width: int = 768
    head_width: int = 64  # d_kv; T5 attention is not scaled
    heads: int = 12
    mlp_width: int = 2048
    encoder_layers: int = 12
    decoder_layers: int = 12
    ff: Literal["relu", "gated-gelu"] = "gated-gelu"
    tie_embeddings: bool = False  # t5-base ties and scales logits by width**-0.5
    relative_buckets: int = 32
    relative_max_distance: int = 128
    image_relative_bias: bool = True  # False: no relative bias between two image tokens
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class HeatmapHeadConfig:
    """Two convolutions, then stages of transposed convolution (stride 2) and two convolutions (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384)
    up_widths: tuple[int, ...] = (768, 384, 384, 192)  # one stage doubles the side
    norm: Literal["layer", "rms"] = "layer"
    residual: bool = False  # around the two convolutions of a stage, as in the public PyTorch port
    relu_before_norm: bool = False  # in the first convolutions, as in the public PyTorch port
    dropout: float = 0.0
    prior: float = 0.02  # output before training, about the mean of real heatmaps
    kind: Literal["full", "quarter"] = "full"  # quarter: no stages beyond a quarter of the image side; fast


@dataclasses.dataclass(frozen=True)
class ScoreHeadConfig:
    """Convolutions over the token grid, flatten, dense layers, sigmoid (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384, 128, 64)
    kernel_size: int = 2
    padding: Literal["SAME", "VALID"] = "SAME"
    pool: int = 0  # average the grid to pool x pool before flattening; 0 keeps the grid
    dense_widths: tuple[int, ...] = (2048, 1024)
    norm: Literal["layer", "rms"] = "layer"
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """ResNet with bottlenecks (He et al. 2016), stride in their 3x3 convolution. Defaults: ResNet-50."""

    stem_width: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)  # of the stages' outputs; all but the first halve the side
    depths: tuple[int, ...] = (3, 4, 6, 3)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """EfficientNet-Lite (Tan & Le 2019, without squeeze and excitation, ReLU6). Defaults: Lite0."""

    stem_width: int = 32
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)  # of the seven stages' outputs
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)


@dataclasses.dataclass(frozen=True)
class ConvNextConfig:
    """ConvNeXt (Liu et al. 2022). Defaults: ConvNeXt tiny."""

    patch_size: int = 4  # side of the first stage's patches; every later stage halves the side
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    layer_scale: bool = True  # a learned factor per channel on each residual branch


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Causal text tower of CLIP (Radford et al. 2021). Defaults: ViT-B/32's."""

    vocab_size: int = 49408
    positions: int = 77  # most tokens, start and end included
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    layer_norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] = "quick-gelu"
    eos_token_id: int = 49407  # the text is read at its first occurrence; 2 (old published configs): at the highest id


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """CLIP's text tower, and which outputs its embeddings of image and text become. The image tower is `model.vit`."""

    text: ClipTextConfig = ClipTextConfig()
    width: int = 512  # of the embeddings that both towers project to
    scores: Literal["cosine", "trained"] = "cosine"  # trained: dense layers on both embeddings give all four
    cosine_scores: tuple[str, ...] = ("alignment",)  # those that the cosine stands for; () for none
    dense_widths: tuple[int, ...] = (512,)
    heatmap: Literal["none", "gradient"] = "none"  # gradient: |d cosine / d pixel| as misalignment map
    heatmap_blur: float = 0.03  # standard deviation of the Gaussian over the gradient, in shares of the image side


@dataclasses.dataclass(frozen=True)
class CriticConfig(ImageModelConfig):
    """The paper's network: ViT and T5, fused; heatmap, score and misaligned-keyword heads."""

    family: Literal["critic"] = "critic"
    variant: Literal["multi-head", "augmented-prompt"] = "multi-head"  # a head per label, or per type, told by a prefix
    tasks_per_example: int = 1  # augmented-prompt: how many of the 7 tasks a training step gives to each example
    task_ids: tuple[tuple[int, ...], ...] = ()  # augmented-prompt: the prefixes' pieces; filled in when a run starts
    tower: Literal["vit", "efficientnet", "resnet", "convnext"] = "vit"  # sees the image; described by its field here
    vit: ViTConfig = ViTConfig()
    efficientnet: EfficientNetConfig = EfficientNetConfig()
    resnet: ResNetConfig = ResNetConfig()
    convnext: ConvNextConfig = ConvNextConfig()
    tower_rate: float = 1.0  # factor on the optimizer's step for the tower
    finest_skip: int = 4  # towers that convolve: stride of the finest map that the heads see
    folded_maps: int = 0  # how many still finer maps are folded into its channels, 2x2 pixels of the next one into four
    t5: T5Config = T5Config()
    heatmap_head: HeatmapHeadConfig = HeatmapHeadConfig()
    score_head: ScoreHeadConfig = ScoreHeadConfig()
    tag_head: bool = False  # names what is shown, for learning only: for towers that start at random
    decoder_sees: Literal["all", "text"] = "all"  # which fused tokens the decoder attends to


@dataclasses.dataclass(frozen=True)
class ResNetBaselineConfig(ImageModelConfig):
    """The paper's first baseline: a ResNet with heatmap and score heads. It reads no prompt."""

    family: Literal["resnet"] = "resnet"
    resnet: ResNetConfig = ResNetConfig()
    heatmap_head: HeatmapHeadConfig = HeatmapHeadConfig()
    score_head: ScoreHeadConfig = ScoreHeadConfig()


@dataclasses.dataclass(frozen=True)
class ClipBaselineConfig(ImageModelConfig):
    """The paper's second baseline, and PickScore: CLIP's two towers, as they are published or fine-tuned."""

    family: Literal["clip"] = "clip"
    vit: ViTConfig = ViTConfig()
    clip: ClipConfig = ClipConfig()
