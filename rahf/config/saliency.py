"""The family of saliency models: where people look in a picture."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.critic import ConvNextConfig, EfficientNetConfig, ResNetConfig, ViTConfig
from rahf.config.model import FamilyConfig


@dataclasses.dataclass(frozen=True)
class SaliencyLossConfig:
    """Weights of the loss parts. Defaults: those of TranSalNet (spec 5.4), and some plain log-likelihood.

    CC, SIM and NSS are subtracted: they grow with agreement.
    """

    kld_weight: float = 10.0
    cc_weight: float = 2.0
    sim_weight: float = 1.0
    nss_weight: float = 1.0
    likelihood_weight: float = 1.0  # of the mean negative log-likelihood of a fixation, in nats above uniform
    edit_weight: float = 0.1  # of edited pictures, with model.edit_probability above 0
    edit_margin: float = 0.1  # by which the mass inside an edited part must rise, in nats


@dataclasses.dataclass(frozen=True)
class SaliencyConfig(FamilyConfig):
    """A tower, a decoder over its maps, and a learned centre bias; the output is a log-density."""

    family: Literal["saliency"] = "saliency"
    image_height: int = 288  # of the canvas that the network sees; pictures are letterboxed into it
    image_width: int = 384
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    tower: Literal["vit", "efficientnet", "resnet", "convnext"] = "efficientnet"  # described by its field here
    vit: ViTConfig = ViTConfig()  # sees a square canvas
    efficientnet: EfficientNetConfig = EfficientNetConfig()
    resnet: ResNetConfig = ResNetConfig()
    convnext: ConvNextConfig = ConvNextConfig()
    stride: int = 4  # canvas pixels per cell of the output; a stride of the tower's maps, which are used from it on
    widths: tuple[int, ...] = (96, 96, 64, 32)  # of the decoder's maps, coarsest first, one for each map of the tower
    blocks: int = 2  # residual blocks of each of the coarser maps; the finest has one
    blur: float = 1.0  # standard deviation in cells of the Gaussian behind the decoder, before training
    tower_rate: float = 1.0  # factor on the optimizer's step for the tower
    # EfficientNet: so many first stages are never trained. `train.cache_tower` keeps their output on disk; of the other
    # towers, and at 7, that of the whole tower.
    frozen_stages: int = 7
    flip: bool = True  # half of the training pictures are mirrored
    edit_probability: float = 0.0  # of showing a picture again, edited where people look, for loss.edit_weight
    edit_strength: tuple[float, float] = (0.02, 0.2)  # smallest and largest, of pixels in [0,1]
    loss: SaliencyLossConfig = SaliencyLossConfig()
    # Of the trained model, not of training:
    mirrored: bool = False  # mean of the densities of a picture and of its mirror image, turned back
    # Mean of the densities of the picture on several canvases, as multiples of the one of training. Not for ViTs.
    scales: tuple[float, ...] = (1.0,)
    smoothing: float = 0.0  # standard deviation of a Gaussian over the density, in cells of the largest canvas
    # How it is computed, which changes neither results nor parameters:
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    remat: Literal["none", "dots", "block", "full"] = "none"
    scan_layers: bool = False

    @property
    def image_size(self) -> int:
        """The side of a square canvas, which towers with positions need; the longer one of another canvas."""
        return max(self.image_height, self.image_width)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.image_height // self.stride, self.image_width // self.stride
