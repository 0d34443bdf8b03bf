"""A small CLIP from scratch on synthetic scenes: one guides a generator, another of the same kind judges.

Command:   rahf prepare synthetic --out data/demo --train 24000 --dev 256 --test 512 --size 64
           rahf train configs/critic/demo_clip.py
           rahf train configs/critic/demo_clip.py --workdir runs/demo_clip_judge --train.seed 1
Hardware:  1 CPU core
Time:      not measured alone; on a fifth of a core, 5 to 26 images/s (2026-11-27)
Result:    docs/benchmarks.md, "A small CLIP from scratch"

Only pictures whose prompt has no word labelled misaligned are pairs. The vocabulary is learnt from the prompts.
"""

from rahf.config import (
    ClipBaselineConfig,
    ClipConfig,
    ClipTextConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """64-pixel pictures, convolutions before the patches: from scratch a ViT alone sees little in so few steps."""
    width, vocab_size = 96, 1024
    return Config(
        workdir="runs/demo_clip",
        data=DataConfig(
            path="data/demo",
            batch_size=64,
            eval_batch_size=256,
            max_prompt_tokens=26,
            max_target_tokens=28,
            max_words=24,
            tokenizer="prompts",
            augment=None,
        ),
        model=ClipBaselineConfig(
            image_size=64,
            vit=ViTConfig(
                patch_size=8,
                width=width,
                depth=2,
                heads=4,
                mlp_width=4 * width,
                class_token=True,
                pre_norm=True,
                stem=(16, 32, 64),
                stem_blocks=1,
            ),
            clip=ClipConfig(
                text=ClipTextConfig(
                    vocab_size=vocab_size,
                    positions=26,
                    width=width,
                    depth=2,
                    heads=4,
                    mlp_width=4 * width,
                    activation="gelu",
                    eos_token_id=vocab_size - 1,
                ),
                width=width,
            ),
        ),
        loss=LossConfig(contrastive="aligned"),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", warmup_steps=50, b2=0.98, weight_decay=0.05, clip_norm=1.0
        ),
        train=TrainConfig(
            steps=320,
            log_every=20,
            eval_every=160,
            eval_examples=256,
            checkpoint_every=80,
            best_metric="recall/mean",
        ),
    )
