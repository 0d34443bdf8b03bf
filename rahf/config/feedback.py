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
    margin: float = 0.0  # rewards above it count no more: the loss is relu(margin - reward); 0: all count; refl: 2
    loss_scale: float = 1.0  # factor of the loss; refl: 1e-3


@dataclasses.dataclass(frozen=True)
class DdpoConfig:
    """Policy gradient of the steps of a stochastic sampler (Black et al. 2024). Defaults: as published for it."""

    clip_range: float = 1e-4  # importance ratios beyond 1 ± it give no gradient
    advantage_max: float = 5.0  # advantages are clamped to ± it
    least_of_prompt: int = 2  # pictures of a prompt from which its own mean and deviation are taken, else the batch's
    updates: int = 1  # of the parameters, from each batch of pictures; from the second on, ratios differ from 1
    place_share: float = 0.0  # share of the advantage that a heatmap spreads over the places of the latents


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """Fine-tuning of a generator by what critics say."""

    # draft, ddpo: by rewards of the pictures that it draws; chosen: on pictures that `rahf select` has chosen.
    method: Literal["", "draft", "ddpo", "chosen"] = ""
    chosen: str = ""  # chosen: the file of `rahf select --chosen`
    prompt_dropout: float = 0.1  # chosen: share of prompts left out, for classifier-free guidance
    prompts: str = ""  # draft, ddpo: text file of training prompts, one a line
    eval_prompts: str = ""  # likewise, of evaluation
    critics: tuple[str, ...] = ("lite",)  # whose scores are the rewards: what `rahf.load` takes
    scores: tuple[str, ...] = ("overall",)  # of each critic, or one for all
    weights: tuple[float, ...] = ()  # of each critic's score, divided by their sum; (): equal
    held_out: str = ""  # a critic that judges at every evaluation and guides nothing; empty: none
    held_out_score: str = "overall"
    patience: int = 2  # evaluations in a row at which guiding and held-out rewards must part for the run to stop
    tolerance: float = 0.0  # the least fall of the held-out reward that counts
    # draft, ddpo: factor of the pull to the base model in the loss. ddpo: the divergence of its steps from the base
    # model's, per value of the latents; draft: the mean squared difference of the predicted noise over tracked steps.
    # 0: none but that of weight decay on the adapters.
    pull_weight: float = 0.0
    pictures_per_prompt: int = 1  # of a batch; ddpo compares those of a prompt
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    eta: float = 0.0  # noise of the sampler; ddpo: 1 as published
    draft: DraftConfig = DraftConfig()
    ddpo: DdpoConfig = DdpoConfig()
