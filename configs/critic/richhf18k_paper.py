"""The paper's network and recipe on RichHF-18K (Liang et al., CVPR 2024), with public towers.

Command:   rahf prepare richhf18k --labels richhf_18k --images pickapic/*.parquet --out data/richhf18k
           rahf train configs/critic/richhf18k_paper.py
           rahf evaluate runs/richhf18k_paper --split test
Hardware:  8 accelerators of 80 GB with --mesh.fsdp 8 --train.accumulate 8 (memory estimated, not measured)
Time:      14 hours on 8 A100 is an estimate, not measured: a training step takes 9.57 TFLOP for each example (matrix
           products and convolutions, counted from the program), so 256 x 20,000 of them take 49 EFLOP, at an assumed
           40% of the A100's 312 TFLOP/s in bfloat16
Metrics:   docs/results.md, beside the paper's own

What is certain, and what is not:
 * Verified in the paper: ViT and T5 fused by self-attention, the seven heads, the loss types, sigmoids.
 * From the supplement, second-hand: ViT-B/16 with T5 v1.1's base shapes, widths of the heads, AdamW with batch 256,
   20,000 iterations, base rate 0.015, linear warm-up over 2,000 and reciprocal square root, augmentation ranges.
 * From memory of the supplement: 512 pixels, 64 decoder tokens, dense layers of 2048 and 1024.
 * Not found anywhere, so ours: the loss weights, the padding of the score head's convolutions (SAME), weight decay,
   gradient clipping, bfloat16, the class token left out, and whether punctuation stays in the target.
 * Not reproducible outside of Google: the towers' pretraining (Spotlight's mixture with WebLI captions). In its
   place: ViT-B/16 of ImageNet-21k, fine-tuned at 384 pixels and interpolated to 512, and T5 v1.1 base.

A rate of 0.015 with plain AdamW on a pretrained ViT is very large; it presumably belongs to steps scaled by the
parameters. If the loss does not fall, --optimizer.learning-rate 1e-4 with the same schedule is ours, or
--optimizer.kind adafactor, whose steps are scaled so. 256 x 20,000 examples are 324 passes over 15,810 pictures, or 46
if the paper counted each of the seven labels as an example.
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
    """ViT-B/16 at 512 pixels, T5 v1.1 base, the paper's heads: 960 M parameters, 560 M of them in four score heads."""
    return Config(
        workdir="runs/richhf18k_paper",
        data=DataConfig(
            path="data/richhf18k",
            batch_size=256,
            eval_batch_size=64,
            max_prompt_tokens=64,
            max_target_tokens=64,
            tokenizer="start",
            augment=AugmentConfig(),
        ),
        model=CriticConfig(
            image_size=512,
            vit=ViTConfig(layer_norm_eps=1e-12),  # google/vit-* were trained with it
            t5=T5Config(ff="gated-gelu", tie_embeddings=False),
            heatmap_head=HeatmapHeadConfig(conv_widths=(768, 384), up_widths=(768, 384, 384, 192)),
            score_head=ScoreHeadConfig(conv_widths=(768, 384, 128, 64), kernel_size=2, dense_widths=(2048, 1024)),
            decoder_sees="all",
            compute_dtype="bfloat16",
        ),
        optimizer=OptimizerConfig(learning_rate=0.015, schedule="rsqrt", warmup_steps=2000),
        start=StartConfig(vision="google/vit-base-patch16-384", text="google/t5-v1_1-base"),
        train=TrainConfig(steps=20_000, eval_every=1000, checkpoint_every=1000),
    )
