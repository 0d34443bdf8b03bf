"""GazeFusion: a ControlNet by saliency maps, in training."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.model import FamilyConfig
from rahf.config.stable_diffusion import ControlNetConfig, StableDiffusionConfig


@dataclasses.dataclass(frozen=True)
class GazeFusionConfig(FamilyConfig):
    """A ControlNet by saliency maps, in training beside the locked pipeline that `start.model` names."""

    family: Literal["gazefusion"] = "gazefusion"
    image_size: int = 512  # side of the crops that are trained on
    prompt_dropout: float = 0.0  # share of captions left out in training; the published training has none
    pipeline: StableDiffusionConfig = StableDiffusionConfig()  # of start.model, written by the run
    controlnet: ControlNetConfig = ControlNetConfig()  # of that pipeline, written by the run
