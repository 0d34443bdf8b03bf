"""The fields of a run's config: what each means, its unit, default and source. Read and written by `rahf.config`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.critic import CriticConfig
from rahf.config.feedback import FeedbackConfig
from rahf.config.model import FamilyConfig


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentations of spec 2.3. They act on image and heatmaps together. `flip_probability`
    is not of the source: a picture whose prompt says "left" or "right" is never mirrored."""

    crop_probability: float = 0.5
    crop_keep: tuple[float, float] = (0.8, 1.0)  # share of width and of height that a crop keeps
    crop_keeps_mass: float = 0.0  # refuse crops that keep less than this share of a heatmap's mass
    flip_probability: float = 0.0  # mirror left to right, unless the prompt names a side; saliency: model.flip
    photometric_probability: float = 0.1
    brightness: float = 0.05  # largest change on a scale of 0..1
    contrast: tuple[float, float] = (0.8, 1.0)
    hue: float = 0.025  # largest turn, in turns
    saturation: tuple[float, float] = (0.8, 1.0)
    jpeg_quality: tuple[int, int] = (70, 100)
    grey_probability: float = 0.1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: str | tuple[str, ...] = "data/demo"  # folder written by `rahf prepare`, or several
    mix: tuple[float, ...] = ()  # of several: how often an example of each is drawn, relative to the others;
    # (): as often as it has examples
    soft_words: bool = True  # learn shares of people where a set has them; False: the majority
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 64  # global, over all processes
    eval_batch_size: int = 64
    max_prompt_tokens: int = 64
    max_target_tokens: int = 64
    max_words: int = 64  # places for words; a prompt of 64 tokens has fewer
    tokenizer: str = "dataset"  # "dataset": beside the data; "start": of start.text or start.model; "prompts": learnt
    # from the training prompts, in CLIP's layout, as many pieces as the model has rows; or a file or folder
    workers: int = 0  # data worker processes; 0 decodes in threads of this process
    augment: AugmentConfig | None = AugmentConfig()

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders of `path`, one or several."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def only(self, path: str) -> DataConfig:
        """The same for one of the folders."""
        return dataclasses.replace(self, path=path, mix=())


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss parts of the critic families (spec 2.6; the paper's are not published).

    `heatmap_weight` multiplies the mean over the two heatmaps, `score_weight` the mean over the four
    scores, `keyword_weight` the cross-entropy of the target sequence.
    """

    heatmap_weight: float = 1.0
    score_weight: float = 1.0
    keyword_weight: float = 1.0
    suffix_weight: float = 1.0  # of the tokens that call a word misaligned, others 1; they are rare
    keyword_warmup_steps: int = 0  # its weight grows linearly over them: see first, then read
    tag_weight: float = 0.0  # of naming the prompt's words from the image alone, with model.tag_head
    tag_steps: int = 0  # its weight falls linearly over them, to tag_rest of it; 0: stays
    tag_rest: float = 0.0
    pair_weight: float = 0.0  # of pairs of known direction: a part made worse must get a hotter map
    pair_margin: float = 0.1  # by which it must, in units of the heatmap
    heatmap_loss: Literal["mse", "weighted-mse", "bce"] = "mse"
    place_weight: float = 0.0  # added to it: divergence between label and prediction, each scaled to a sum of 1
    score_loss: Literal["mse", "bce"] = "mse"
    contrastive: Literal["none", "all", "aligned"] = "none"  # CLIP: learn no label, but which prompt of a batch belongs
    # to which picture; aligned: a prompt with a word labelled misaligned belongs to none


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022): kernel + alpha / rank · A · B, only A and B are trained."""

    rank: int = 0  # 0: none
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("*/query/kernel", "*/value/kernel")  # of the kernels that are adapted


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up (spec 2.7), or Adafactor; of all parameters, or of some."""

    kind: Literal["adamw", "adafactor"] = "adamw"  # adafactor: no moments in memory, steps relative to parameters
    learning_rate: float = 1e-4
    schedule: Literal["rsqrt", "cosine", "constant"] = "rsqrt"
    warmup_steps: int = 2000
    final_fraction: float = 0.0  # cosine ends at this share of the learning rate
    weight_decay: float = 0.01  # on matrices and kernels only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # global gradient norm; 0 turns clipping off
    ema_decay: float = 0.0  # 0: none; else the averaged parameters are evaluated and kept as best
    trainable: tuple[str, ...] = ()  # patterns of parameters to train: heatmap_* score_* vit/norm/*; (): all,
    # or with adapters none besides them
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work: their numbers along the three axes; -1 takes what is left."""

    data: int = -1  # each sees other examples, all hold the parameters
    fsdp: int = 1  # each sees other examples and holds a share of the parameters
    tensor: int = 1  # share one layer's arithmetic


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What a fresh run starts from; empty: random parameters. A resumed run has its own and ignores it.

    Towers are folders or ids of the Hugging Face hub, and must have the sizes of the model. What was taken
    and what was left random is written to `start.json` in the run directory.
    """

    vision: str = ""  # image tower: google/vit-*, SigLIP, SigLIP 2, DINOv2; or that of model.tower
    text: str = ""  # T5 v1.0, v1.1 or Flan
    vision_revision: str = ""  # branch, tag or commit on the hub; empty: its main branch
    text_revision: str = ""
    model: str = ""  # a run directory, or a model directory of `rahf import`, instead of towers
    fresh: tuple[str, ...] = ()  # parts of `model` to leave random: heatmap_*, score_overall, decoder, …


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and bookkeeping of a run."""

    steps: int = 20_000
    seed: int = 0
    cache_tower: bool = False  # keep a frozen tower's outputs on disk (without augmentation): trains in minutes
    accumulate: int = 1  # parts of a batch, one after the other: as much less memory, the same gradient
    log_every: int = 50
    eval_every: int = 1000  # 0: only at the end
    eval_examples: int = 1000  # of the evaluation split, at most
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # newest; the best one is kept besides
    best_metric: str = "scores/mean/plcc"
    best_mode: Literal["max", "min"] = "max"


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on; saved as `config.json` in the run directory."""

    workdir: str = "runs/unnamed"
    data: DataConfig = DataConfig()
    model: FamilyConfig = CriticConfig()  # of any family: rahf.config.critic, rahf.config.diffusion, …
    loss: LossConfig = LossConfig()  # of the critic families
    feedback: FeedbackConfig = FeedbackConfig()  # of Stable Diffusion: what it learns from
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
