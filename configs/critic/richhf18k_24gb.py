"""Ours, for one card of 24 GB: SigLIP 2 base at 384 pixels, T5 v1.1 base, heatmap heads at a quarter of the side.

Command:   rahf prepare richhf18k --hub --out data/richhf18k
           rahf train configs/critic/richhf18k_24gb.py
           rahf evaluate runs/richhf18k_24gb --split test
           and for a critic that may be given away:
           rahf prepare rapidata --hub --out data/rapidata
           rahf train configs/critic/richhf18k_24gb.py --data.path data/rapidata --workdir runs/rapidata_24gb
           rahf evaluate runs/rapidata_24gb --split test
Hardware:  one accelerator of 24 GB. 393 M parameters with gradients, Adam's moments and averages take 7.9 GB; the
           compiler's plan of all memory for a GPU, before anything runs, is 10.2 GiB (docs/benchmarks.md):
           python benchmarks/roofline.py --preset richhf18k_24gb
Time:      1.5 hours on an RTX 4090 (165 TFLOP/s in bfloat16), 3.5 on an RTX 3090 (71): an estimate, not measured.
           1.11 TFLOP for each example (counted from the program) times 64 x 5,000 are 0.36 EFLOP, at 40% of these rates
Metrics:   docs/results.md

A batch of 64 pictures is computed in eight parts of 8, which gives the same gradient with an eighth of the activations.
The score heads average their grid to 8 x 8 before the first dense layer: the paper's, over the whole grid, leave no
room for Adam's moments. DINOv2 base is another tower of the size: `--start.vision facebook/dinov2-base` with its
patches of 14 pixels, class token and layer scales. The recipe (rate, length, averaged parameters) is ours and has not
been tuned on RichHF-18K.
"""

from rahf.config import (
    AugmentConfig,
    Config,
    CriticConfig,
    DataConfig,
    HeatmapHeadConfig,
    OptimizerConfig,
    ScoreHeadConfig,
    StartConfig,
    T5Config,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """ViT-B/16 of SigLIP 2, T5 v1.1 base that sees both, quarter heatmap heads, small score heads."""
    return Config(
        workdir="runs/richhf18k_24gb",
        data=DataConfig(
            path="data/richhf18k",
            batch_size=64,
            eval_batch_size=16,
            max_prompt_tokens=64,
            max_target_tokens=64,
            tokenizer="start",
            augment=AugmentConfig(),
        ),
        model=CriticConfig(
            image_size=384,
            vit=ViTConfig(layer_norm_eps=1e-6, activation="gelu-tanh"),  # SigLIP's
            t5=T5Config(ff="gated-gelu", tie_embeddings=False, dropout=0.1),
            heatmap_head=HeatmapHeadConfig(conv_widths=(768, 384), up_widths=(384, 192), kind="quarter"),
            score_head=ScoreHeadConfig(conv_widths=(384, 192), pool=8, dense_widths=(512,)),
            decoder_sees="all",
            compute_dtype="bfloat16",
            remat="dots",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=500, ema_decay=0.999),
        start=StartConfig(vision="google/siglip2-base-patch16-384", text="google/t5-v1_1-base"),
        train=TrainConfig(steps=5_000, accumulate=8, eval_every=500, checkpoint_every=500),
    )
