"""Baseline of the paper's tables: CLIP fine-tuned, four scores from the embeddings of image and prompt.

Command:   rahf train configs/critic/baseline_clip_finetuned.py --data.path data/richhf18k
           rahf evaluate runs/baseline_clip_finetuned --split test
Hardware:  one GPU with 24 GB or more
Time:      not measured
Metrics:   docs/results.md

The paper says "CLIP, fine-tuned" and no more. Which CLIP (ViT-L/14), what reads the embeddings (both and their
product, one hidden layer) and the recipe are ours. The vocabulary is the one beside the weights. Without a network
give --start.vision FOLDER.
"""

from rahf.config import (
    ClipBaselineConfig,
    ClipConfig,
    ClipTextConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    StartConfig,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """CLIP ViT-L/14 at 224 pixels."""
    return Config(
        workdir="runs/baseline_clip_finetuned",
        data=DataConfig(
            path="data/richhf18k", batch_size=64, eval_batch_size=64, max_prompt_tokens=77, tokenizer="start"
        ),
        model=ClipBaselineConfig(
            image_size=224,
            vit=ViTConfig(
                patch_size=14,
                width=1024,
                depth=24,
                heads=16,
                mlp_width=4096,
                class_token=True,
                layer_norm_eps=1e-5,
                activation="quick-gelu",
                pre_norm=True,
            ),
            clip=ClipConfig(
                text=ClipTextConfig(width=768, depth=12, heads=12, mlp_width=3072),
                width=768,
                scores="trained",
                dense_widths=(1024,),
            ),
            image_mean=(0.48145466, 0.4578275, 0.40821073),
            image_std=(0.26862954, 0.26130258, 0.27577711),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=500),
        start=StartConfig(vision="openai/clip-vit-large-patch14"),
        train=TrainConfig(steps=5_000, eval_every=500, checkpoint_every=500),
    )
