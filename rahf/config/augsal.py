"""Augsal: saliency and image properties read out of a frozen diffusion model."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.model import FamilyConfig
from rahf.config.stable_diffusion import StableDiffusionConfig


@dataclasses.dataclass(frozen=True)
class AugsalLossConfig:
    """Weights of the loss parts. Defaults: those of the published code (spec 7.2); the paper's are not known."""

    color_weight: float = 0.1  # of each of red, green and blue
    brightness_weight: float = 0.1
    local_contrast_weight: float = 0.1
    global_contrast_weight: float = 0.1
    cc_weight: float = 0.2  # subtracted: it grows with agreement
    kld_weight: float = 0.2
    edit_weight: float = 0.1
    edit_loss: Literal["bce", "hinge", "mask"] = "bce"  # equation 7; ours: must rise; the published code
    margin: float = 0.1  # of the hinge, by which saliency must rise
    global_contrast: Literal["rms", "difference"] = "rms"  # the paper's; the published code's


@dataclasses.dataclass(frozen=True)
class AugsalConfig(FamilyConfig):
    """Readouts of a frozen pipeline, which `start.model` names. Sizes: those of the published code (spec 6 and 7)."""

    family: Literal["augsal"] = "augsal"
    image_size: int = 512  # side of the canvas; pictures are letterboxed into it
    resolution: int = 64  # side of the maps that are read out; image_size must be a multiple
    num_inference_steps: int = 50  # of the DDIM inversion
    times: int = 6  # least noisy steps at which features are taken
    bottleneck_width: int = 96
    features: int = 384  # channels of an aggregated map
    groups: int = 32  # of group norms in the bottlenecks
    time_embedding: bool = False  # bottlenecks read the timestep, as in Readout Guidance
    readout_widths: tuple[int, int, int] = (128, 32, 128)  # two convolutions and a dense layer
    saliency_widths: tuple[int, int, int, int] = (384, 192, 64, 8)
    region: Literal["mean", "crop"] = "mean"  # how a readout looks at a patch: averages over it, or enlarges it
    classes: int = 0  # of the class readout; 0: none. The published one has the 91 of COCO
    patch_sides: tuple[float, float] = (0.2, 0.7)  # smallest and largest side of a random patch, shares of the picture
    flip: bool = True  # half of the training pictures are mirrored
    edit_probability: float = 0.5  # of showing an edited copy, too, whose saliency the edit loss judges
    edit_strength: tuple[float, float] = (0.02, 0.2)  # alpha of an edit
    gamma: tuple[float, ...] = ()  # brightness in latents; (): of SD 1.4 (spec 7.3), of patches of pixels the exact one
    loss: AugsalLossConfig = AugsalLossConfig()
    pipeline: StableDiffusionConfig = StableDiffusionConfig()  # of start.model, written by the run
