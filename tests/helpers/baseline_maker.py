"""Small random baselines: networks, and checkpoints in published layouts, without PyTorch."""

import dataclasses
import json
import pathlib

import numpy as np

from rahf.config import (
    ClipBaselineConfig,
    ClipConfig,
    ClipTextConfig,
    CriticConfig,
    HeatmapHeadConfig,
    ResNetBaselineConfig,
    ResNetConfig,
    ScoreHeadConfig,
    ViTConfig,
)
from tests.helpers.pretrained_maker import draw, save

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ("red", "blue", "green", "star", "ring", "two", "one", "left", "of", "above", "a")

RESNET = ResNetBaselineConfig(
    image_size=32,
    resnet=ResNetConfig(8, (16, 32), (1, 1)),
    heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),
    score_head=ScoreHeadConfig(conv_widths=(8,), pool=2, dense_widths=(8,)),
)
CLIP = ClipBaselineConfig(
    image_size=16,
    vit=ViTConfig(
        patch_size=8, width=16, depth=1, heads=2, mlp_width=16, class_token=True, pre_norm=True, activation="quick-gelu"
    ),
    clip=ClipConfig(text=ClipTextConfig(48, 12, 16, 1, 2, 16, eos_token_id=1), width=8, dense_widths=(8,)),
)


def clip(**fields) -> CriticConfig:
    """`CLIP` with other fields of `ClipConfig`."""
    return dataclasses.replace(CLIP, clip=dataclasses.replace(CLIP.clip, **fields))


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Ids by piece and merges of a small vocabulary made like CLIP's: bytes, bytes at word ends, merges, specials."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces, merges = letters + [letter + "</w>" for letter in letters], []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            if f"{symbols[0]} {symbols[1]}" not in merges:
                merges.append(f"{symbols[0]} {symbols[1]}")
                pieces.append(symbols[0] + symbols[1])
            symbols[:2] = [symbols[0] + symbols[1]]
    pieces = list(dict.fromkeys(pieces)) + [START, END]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def save_vocabulary(folder: pathlib.Path) -> int:
    """Writes `vocab.json` and `merges.txt`; the number of pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return len(ids)


def clip_state(vocab_size: int) -> dict[str, np.ndarray]:
    """The tensors of a CLIP as `openai/clip-*` names them: 32 pixels, patches of 8, width 16, 20 positions."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection.weight": (12, 16),
        "visual_projection.weight": (12, 16),
        "text_model.embeddings.token_embedding.weight": (vocab_size, 16),
        "text_model.embeddings.position_embedding.weight": (20, 16),
        "vision_model.embeddings.class_embedding": (16,),
        "vision_model.embeddings.patch_embedding.weight": (16, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (17, 16),
    }
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for tower in ("text_model", "vision_model"):
        layer = f"{tower}.encoder.layers.0."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        for name, shape in {"fc1": (24, 16), "fc2": (16, 24)}.items():
            shapes |= {f"{layer}mlp.{name}.weight": shape, f"{layer}mlp.{name}.bias": shape[:1]}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (16, 16), f"{layer}self_attn.{name}.bias": (16,)}
    for norm in norms:
        shapes |= {f"{norm}.weight": (16,), f"{norm}.bias": (16,)}
    state = draw(shapes)
    # Ids of positions, as old files have them; safetensors may hold integers.
    return state | {"text_model.embeddings.position_ids": np.arange(20)[None]}


def clip_folder(folder: pathlib.Path) -> pathlib.Path:
    """A whole CLIP with its vocabulary, old style: the text ends at the highest id."""
    size = save_vocabulary(folder)
    tower = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    config = {
        "model_type": "clip",
        "projection_dim": 12,
        "vision_config": dict(tower, image_size=32, patch_size=8),
        "text_config": dict(tower, vocab_size=size, max_position_embeddings=20, eos_token_id=2),
    }
    return save(folder, config, clip_state(size))


def resnet_folder(folder: pathlib.Path) -> pathlib.Path:
    """A ResNet of two stages in the layout of `microsoft/resnet-50`."""
    shapes: dict[str, tuple[int, ...]] = {"classifier.1.weight": (5, 32), "classifier.1.bias": (5,)}

    def conv(name: str, inputs: int, outputs: int, size: int) -> None:
        shapes[f"{name}.convolution.weight"] = (outputs, inputs, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.normalization.{part}"] = (outputs,)

    conv("resnet.embedder.embedder", 3, 8, 7)
    for stage, (inputs, outputs) in enumerate([(8, 16), (16, 32)]):
        block = f"resnet.encoder.stages.{stage}.layers.0"
        conv(f"{block}.shortcut", inputs, outputs, 1)
        inner = outputs // 4
        for number, (a, b, size) in enumerate([(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]):
            conv(f"{block}.layer.{number}", a, b, size)
    state = {name: np.abs(v) if name.endswith("running_var") else v for name, v in draw(shapes).items()}
    state["resnet.embedder.embedder.normalization.num_batches_tracked"] = np.array(7)
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
    return save(folder, config, state)
