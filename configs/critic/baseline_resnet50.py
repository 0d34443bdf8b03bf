"""Baseline of the paper's tables: ResNet-50 with the paper's heads on its feature map (heatmaps and scores, no words).

Command:   rahf train configs/critic/baseline_resnet50.py --data.path data/richhf18k
           rahf evaluate runs/baseline_resnet50 --split test
Hardware:  one GPU with 24 GB or more
Time:      not measured
Metrics:   docs/results.md

The paper says that it used a ResNet-50 and no more. ImageNet weights, 512 pixels (as for its own network), the
stride of 32, so that the last doubling of the heatmaps is bilinear, and the recipe are ours. Without a network give
--start.vision FOLDER, or torchvision's file: --start.vision resnet50-11ad3fa6.pth
"""

from rahf.config import (
    Config,
    DataConfig,
    HeatmapHeadConfig,
    OptimizerConfig,
    ResNetBaselineConfig,
    ResNetConfig,
    ScoreHeadConfig,
    StartConfig,
    TrainConfig,
)


def config() -> Config:
    """ResNet-50 at 512 pixels, feature map of 16 x 16."""
    return Config(
        workdir="runs/baseline_resnet50",
        data=DataConfig(path="data/richhf18k", batch_size=64, eval_batch_size=64),
        model=ResNetBaselineConfig(
            image_size=512,
            resnet=ResNetConfig(),
            heatmap_head=HeatmapHeadConfig(),
            score_head=ScoreHeadConfig(),
            image_mean=(0.485, 0.456, 0.406),
            image_std=(0.229, 0.224, 0.225),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=500),
        start=StartConfig(vision="microsoft/resnet-50"),
        train=TrainConfig(steps=10_000, eval_every=1000, checkpoint_every=1000),
    )
