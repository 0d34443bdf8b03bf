"""Stable Diffusion fine-tuned by the gradient of a critic's score through the last step of sampling (DRaFT-1).

Command:   rahf import stable-diffusion FOLDER models/sd15
           rahf train configs/diffusion/draft.py --workdir runs/draft
Data:      prompts/train.txt and prompts/eval.txt, one prompt a line
Critics:   "lite" guides; runs/judge, a critic that was trained apart from it, is held out
Not yet run at this size: rank, learning rate and number of steps are guesses.
Use:       rahf.diffusion.load("runs/draft")

The run ends when the held-out score falls while the guiding one rises. `--feedback.draft.rule alignprop` and `refl` are
the other rules.
"""

from rahf.config import (
    Config,
    DataConfig,
    DraftConfig,
    FeedbackConfig,
    LoraConfig,
    OptimizerConfig,
    StableDiffusionConfig,
    StartConfig,
    TrainConfig,
)


def config() -> Config:
    """The network is that of `start.model`."""
    return Config(
        workdir="runs/draft",
        data=DataConfig(batch_size=16, eval_batch_size=16),
        model=StableDiffusionConfig(),
        start=StartConfig(model="models/sd15"),
        feedback=FeedbackConfig(
            method="draft",
            prompts="prompts/train.txt",
            eval_prompts="prompts/eval.txt",
            critics=("lite",),
            scores=("overall",),
            held_out="runs/judge",
            num_inference_steps=50,
            guidance_scale=7.5,
            draft=DraftConfig(rule="draft", k=1),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            schedule="constant",
            warmup_steps=20,
            lora=LoraConfig(
                rank=8, alpha=8.0, patterns=("unet/*/to_q/kernel", "unet/*/to_k/kernel", "unet/*/to_v/kernel")
            ),
        ),
        train=TrainConfig(
            steps=1000,
            log_every=10,
            eval_every=50,
            eval_examples=64,
            checkpoint_every=50,
            best_metric="reward/held_out",
        ),
    )
