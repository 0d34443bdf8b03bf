"""How a generator learns from rewards of its own pictures. Methods: `rahf.diffusion.feedback`."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """Direct reward fine-tuning: the gradient of the reward runs back through the last steps of the sampling."""

    # draft: through the last `k` steps (Clark et al. 2024). alignprop: through a number of last steps that is drawn
    # from 1 to `k` (Prabhudesai et al. 2023). refl: sampling stops at a drawn step, whose clean estimate is judged
    # (Xu et al. 2023).
    rule: Literal["draft", "alignprop", "refl"] = "draft"
    k: int = 1
    stop_range: tuple[int, int] = (30, 39)  # refl, both included, of 40 steps: as published
    margin: float | None = None  # rewards above it count no more: the loss is relu(margin - reward); refl: 2
    loss_scale: float = 1.0  # factor of the loss; refl: 1e-3


@dataclasses.dataclass(frozen=True)
class DdpoConfig:
    """Policy gradient of the steps of a stochastic sampler (Black et al. 2024). Defaults: as published for it."""

    clip_range: float = 1e-4  # importance ratios beyond 1 ± it give no gradient
    advantage_max: float = 5.0  # advantages are clamped to ± it
    least_of_prompt: int = 2  # pictures of a prompt from which its own mean and deviation are taken, else the batch's
    place_share: float = 0.0  # share of the advantage that a heatmap spreads over the places of the latents
