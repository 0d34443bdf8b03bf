"""The fields of a run's config: what each means, its unit, default and source. Read and written by `rahf.config`."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentations of spec 2.3. They act on image and heatmaps together. There are no flips:
    a flip would change "left" and "right" in the prompt."""

    crop_probability: float = 0.5
    crop_keep: tuple[float, float] = (0.8, 1.0)  # share of width and of height that a crop keeps
    crop_keeps_mass: float = 0.0  # refuse crops that keep less than this share of a heatmap's mass
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

    path: str = "data/demo"  # folder written by `rahf prepare`
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 64  # global, over all processes
    eval_batch_size: int = 64
    max_prompt_tokens: int = 64
    max_target_tokens: int = 64
    max_words: int = 64  # places for words; a prompt of 64 tokens has fewer
    tokenizer: str = "dataset"  # "dataset": beside the data; "start": of start.text or start.model; or a file or folder
    workers: int = 0  # data worker processes; 0 decodes in threads of this process
    augment: AugmentConfig | None = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Vision transformer (Dosovitskiy et al. 2021), pre-norm, learned position embeddings."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    class_token: bool = False  # joins the sequence in front of the patches; dropped before the heads
    layer_norm_eps: float = 1e-6
    stem: tuple[int, ...] = ()  # widths of stride-2 3x3 convolutions before the patch embedding
    stem_blocks: int = 0  # residual 3x3 convolutions behind each of them
    dropout: float = 0.0
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] = "gelu"  # SigLIP: tanh; CLIP: quick, x sigmoid(1.702 x)
    layer_scale: bool = False  # a learned factor per channel on each residual branch (DINOv2)
    pre_norm: bool = False  # one more layer normalization in front of the first layer (CLIP)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 encoder and decoder. Defaults: the shapes of T5 v1.1 base."""

    vocab_size: int = 32128
    width: int = 768
    head_width: int = 64  # d_kv; T5 attention is not scaled
    heads: int = 12
    mlp_width: int = 2048
    encoder_layers: int = 12
    decoder_layers: int = 12
    ff: Literal["relu", "gated-gelu"] = "gated-gelu"
    tie_embeddings: bool = False  # t5-base ties and scales logits by width**-0.5
    relative_buckets: int = 32
    relative_max_distance: int = 128
    image_relative_bias: bool = True  # False: no relative bias between two image tokens
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class HeatmapHeadConfig:
    """Two convolutions, then stages of transposed convolution (stride 2) and two convolutions (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384)
    up_widths: tuple[int, ...] = (768, 384, 384, 192)  # one stage doubles the side
    norm: Literal["layer", "rms"] = "layer"
    residual: bool = False  # around the two convolutions of a stage, as in the public PyTorch port
    relu_before_norm: bool = False  # in the first convolutions, as in the public PyTorch port
    dropout: float = 0.0
    prior: float = 0.02  # output before training, about the mean of real heatmaps
    kind: Literal["full", "quarter"] = "full"  # quarter: no stages beyond a quarter of the image side; fast


@dataclasses.dataclass(frozen=True)
class ScoreHeadConfig:
    """Convolutions over the token grid, flatten, dense layers, sigmoid (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384, 128, 64)
    kernel_size: int = 2
    padding: Literal["SAME", "VALID"] = "SAME"
    pool: int = 0  # average the grid to pool x pool before flattening; 0 keeps the grid
    dense_widths: tuple[int, ...] = (2048, 1024)
    norm: Literal["layer", "rms"] = "layer"
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """ResNet with bottlenecks (He et al. 2016), stride in their 3x3 convolution. Defaults: ResNet-50."""

    stem_width: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)  # of the stages' outputs; all but the first halve the side
    depths: tuple[int, ...] = (3, 4, 6, 3)


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Causal text tower of CLIP (Radford et al. 2021). Defaults: ViT-B/32's."""

    vocab_size: int = 49408
    positions: int = 77  # most tokens, start and end included
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    layer_norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] = "quick-gelu"
    eos_token_id: int = 49407  # the text is read at its first occurrence; 2 (old published configs): at the highest id


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What is made of CLIP's embeddings of image and text. The image tower is `model.vit`."""

    text: ClipTextConfig = ClipTextConfig()
    width: int = 512  # of the embeddings that both towers project to
    scores: Literal["cosine", "trained"] = "cosine"  # trained: dense layers on both embeddings give all four
    cosine_scores: tuple[str, ...] = ("alignment",)  # those that the cosine stands for; () for none
    dense_widths: tuple[int, ...] = (512,)
    heatmap: Literal["none", "gradient"] = "none"  # gradient: |d cosine / d pixel| as misalignment map
    heatmap_blur: float = 0.03  # standard deviation of the Gaussian over the gradient, in shares of the image side


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """A U-Net that makes pictures from prompts, in pixels; the prompt is read by the encoder of `model.t5`."""

    widths: tuple[int, ...] = (64, 128, 256)  # of the levels; each but the first halves the side
    blocks: int = 1  # residual blocks per level on the way down; one more on the way up
    patch: int = 1  # side of the squares of pixels that are one cell of the first level: 2 costs a quarter
    attention_from: int = 1  # levels from this one on attend to pixels and words; the bottom always does
    heads: int = 4  # of this attention
    groups: int = 8  # of the norms
    times: int = 1000  # of the noise schedule
    schedule: Literal["cosine", "linear"] = "cosine"
    predicts: Literal["v", "eps", "x0"] = "v"  # x0, the clean picture, is learnt fastest where cells are large
    prompt_dropout: float = 0.1  # share of prompts left out in training, for classifier-free guidance


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole network. `image_size` is the side of the square that the network sees."""

    # "rahf" is the paper's network; "resnet" and "clip" are the baselines of its tables (docs/results.md).
    # "diffusion" is no critic but a generator to be guided by one (rahf.diffusion).
    kind: Literal["rahf", "resnet", "clip", "diffusion"] = "rahf"
    variant: Literal["multi-head", "augmented-prompt"] = "multi-head"  # a head per label, or per type, told by a prefix
    tasks_per_example: int = 1  # augmented-prompt: how many of the 7 tasks a training step gives to each example
    task_ids: tuple[tuple[int, ...], ...] = ()  # augmented-prompt: the prefixes' pieces; found when a run starts
    image_size: int = 512
    vit: ViTConfig = ViTConfig()
    t5: T5Config = T5Config()
    heatmap_head: HeatmapHeadConfig = HeatmapHeadConfig()
    score_head: ScoreHeadConfig = ScoreHeadConfig()
    resnet: ResNetConfig = ResNetConfig()  # of kind "resnet"
    clip: ClipConfig = ClipConfig()  # of kind "clip"
    diffusion: DiffusionConfig = DiffusionConfig()  # of kind "diffusion"
    tag_head: bool = False  # names what is shown, for learning only: for towers that start at random
    decoder_sees: Literal["all", "text"] = "all"  # which fused tokens the decoder attends to
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    # How it is computed, which changes neither results nor parameters:
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cuDNN's fused attention on NVIDIA GPUs in bfloat16
    remat: Literal["none", "dots", "block", "full"] = "none"  # kept for the gradient: all; products; blocks; parts
    scan_layers: bool = False  # one compiled layer used for all of a stack: compiles faster, runs a little slower


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss parts (spec 2.6; the paper's are not published).

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
    heatmap_loss: Literal["mse", "weighted-mse", "bce"] = "mse"
    score_loss: Literal["mse", "bce"] = "mse"


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

    vision: str = ""  # image tower: google/vit-*, SigLIP, SigLIP 2, DINOv2
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
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
