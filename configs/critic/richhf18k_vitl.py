"""Network and recipe of the public PyTorch port of RichHF (youweiliang/RichHF): ViT-L/16 at 384, T5-base.

Command:   rahf prepare richhf18k --labels richhf_18k --images pickapic/*.parquet --out data/richhf18k
           rahf train configs/critic/richhf18k_vitl.py
           rahf evaluate runs/richhf18k_vitl --split test
           or without training: rahf import richhf-torch rahf_model.pt models/richhf --license "CC BY-NC 4.0"
                                rahf evaluate models/richhf --data data/richhf18k --split test
Hardware:  one accelerator of 80 GB; less with --model.remat block (memory estimated, not measured)
Time:      13 hours on an A100 is an estimate, not measured: 6.20 TFLOP for each example (counted from the program)
           times 8 x 59,288 are 2.9 EFLOP, at an assumed 40% of the 156 TFLOP/s of its TensorFloat-32
Metrics:   docs/results.md, beside the port's own

The network is the published checkpoint's to the digit, so a run may also start from it: --start.vision "" --start.text
"" --start.model models/richhf. The recipe is the port's defaults: AdamW with weight decay 0.002, 8 pictures per GPU,
30 epochs, 2e-5 falling to 1e-5 by a cosine, every loss with weight 1 and summed over the heads. Different or uncertain:
 * How many GPUs its results took is not said; the batch here is that of one. With N, give --data.batch-size 8N and
   --train.steps 59288/N.
 * Its rate changes once per epoch, ours at every step; ours leaves padding out of the word loss, the port's does not;
   the port's prompt has lost its punctuation, ours has not. Dropout of 0.1 in the T5 is what transformers' t5-base
   trains with.
"""

from rahf.config import (
    Config,
    CriticConfig,
    DataConfig,
    HeatmapHeadConfig,
    LossConfig,
    OptimizerConfig,
    ScoreHeadConfig,
    StartConfig,
    T5Config,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """ViT-L/16 at 384 pixels with class token, T5-base, residual heads with RMS norms, decoder on the text alone."""
    return Config(
        workdir="runs/richhf18k_vitl",
        data=DataConfig(
            path="data/richhf18k",
            batch_size=8,
            eval_batch_size=32,
            max_prompt_tokens=64,
            max_target_tokens=100,
            tokenizer="start",
            augment=None,
        ),
        model=CriticConfig(
            image_size=384,
            vit=ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096, class_token=True, layer_norm_eps=1e-12),
            t5=T5Config(mlp_width=3072, ff="relu", tie_embeddings=True, dropout=0.1),
            heatmap_head=HeatmapHeadConfig(norm="rms", residual=True, relu_before_norm=True),
            score_head=ScoreHeadConfig(
                conv_widths=(768, 384, 192, 96, 48, 12), kernel_size=3, dense_widths=(512, 128), norm="rms"
            ),
            decoder_sees="text",
        ),
        loss=LossConfig(heatmap_weight=2.0, score_weight=4.0, keyword_weight=1.0),  # sums over 2 and 4 heads
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            schedule="cosine",
            warmup_steps=0,
            final_fraction=0.5,
            weight_decay=2e-3,
            clip_norm=0.0,
        ),
        start=StartConfig(vision="google/vit-large-patch16-384", text="google-t5/t5-base"),
        train=TrainConfig(steps=59_288, eval_every=1976, checkpoint_every=1976),  # an epoch is 1,976 steps
    )
