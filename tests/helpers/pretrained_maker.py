"""Writes small random checkpoints in the layout of the Hugging Face hub, without PyTorch."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

VIT = dict(
    model_type="vit",
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=32,
    patch_size=8,
)
T5 = dict(
    model_type="t5",
    vocab_size=40,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    feed_forward_proj="relu",
)


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of the given shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def vit_state() -> dict[str, np.ndarray]:
    """The tensors of `VIT` as `google/vit-*` names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 16),
        "embeddings.position_embeddings": (1, 17, 16),
        "embeddings.patch_embeddings.projection.weight": (16, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (16,),
        "layernorm.weight": (16,),
        "layernorm.bias": (16,),
        "pooler.dense.weight": (16, 16),
        "pooler.dense.bias": (16,),
    }
    dense = {
        "attention.attention.query": (16, 16),
        "attention.attention.key": (16, 16),
        "attention.attention.value": (16, 16),
        "attention.output.dense": (16, 16),
        "intermediate.dense": (24, 16),
        "output.dense": (16, 24),
    }
    for number in range(2):
        for name, shape in {**dense, "layernorm_before": (16,), "layernorm_after": (16,)}.items():
            shapes[f"encoder.layer.{number}.{name}.weight"] = shape
            shapes[f"encoder.layer.{number}.{name}.bias"] = shape[:1]
    return draw(shapes)


SIGLIP = dict(VIT, model_type="siglip_vision_model")
DINOV2 = dict(VIT, model_type="dinov2", mlp_ratio=1.5)


def siglip_state() -> dict[str, np.ndarray]:
    """The tensors of `SIGLIP` as the hub names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (16, 3, 8, 8),
        "vision_model.embeddings.patch_embedding.bias": (16,),
        "vision_model.embeddings.position_embedding.weight": (16, 16),
        "vision_model.post_layernorm.weight": (16,),
        "vision_model.post_layernorm.bias": (16,),
        "vision_model.head.probe": (1, 1, 16),
    }
    dense = {f"self_attn.{name}": (16, 16) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    return draw(shapes | _layers("vision_model.encoder.layers.", dense, ("layer_norm1", "layer_norm2")))


def dinov2_state() -> dict[str, np.ndarray]:
    """The tensors of `DINOV2` as the hub names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 16),
        "embeddings.mask_token": (1, 16),
        "embeddings.position_embeddings": (1, 17, 16),
        "embeddings.patch_embeddings.projection.weight": (16, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (16,),
        "layernorm.weight": (16,),
        "layernorm.bias": (16,),
    }
    dense = {f"attention.attention.{name}": (16, 16) for name in ("query", "key", "value")}
    shapes |= _layers("encoder.layer.", dense | {"attention.output.dense": (16, 16)}, ("norm1", "norm2"))
    for number in range(2):
        shapes |= {f"encoder.layer.{number}.layer_scale{n}.lambda1": (16,) for n in (1, 2)}
    return draw(shapes)


def _layers(prefix: str, dense: dict[str, tuple[int, int]], norms: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of two layers of width 16 whose feed-forward part is called mlp."""
    shapes: dict[str, tuple[int, ...]] = {}
    parts = dense | {"mlp.fc1": (24, 16), "mlp.fc2": (16, 24)} | dict.fromkeys(norms, (16,))
    for number in range(2):
        for name, shape in parts.items():
            shapes[f"{prefix}{number}.{name}.weight"] = shape
            shapes[f"{prefix}{number}.{name}.bias"] = shape[:1]
    return shapes


def t5_state() -> dict[str, np.ndarray]:
    """The tensors of `T5` (v1.0: ReLU, tied) as the hub names them."""
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (40, 16)}
    for stack, attentions in (
        ("encoder", ["SelfAttention"]),
        ("decoder", ["SelfAttention", "EncDecAttention"]),
    ):
        shapes[f"{stack}.final_layer_norm.weight"] = (16,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
        for number in range(2):
            layer = f"{stack}.block.{number}.layer."
            for place, attention in enumerate(attentions):
                for name, shape in {"q": (8, 16), "k": (8, 16), "v": (8, 16), "o": (16, 8)}.items():
                    shapes[f"{layer}{place}.{attention}.{name}.weight"] = shape
                shapes[f"{layer}{place}.layer_norm.weight"] = (16,)
            last = len(attentions)
            shapes[f"{layer}{last}.DenseReluDense.wi.weight"] = (24, 16)
            shapes[f"{layer}{last}.DenseReluDense.wo.weight"] = (16, 24)
            shapes[f"{layer}{last}.layer_norm.weight"] = (16,)
    return draw(shapes)


def save(folder: pathlib.Path, config: dict, state: dict[str, np.ndarray], parts: int = 1) -> pathlib.Path:
    """Writes `config.json` and the weights, in several files with an index if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    names, weight_map = sorted(state), {}
    for number in range(parts):
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        mine = names[number::parts]
        save_file({name: state[name] for name in mine}, folder / file)
        weight_map.update({name: file for name in mine})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def richhf_state(vocabulary: int = 40) -> dict[str, np.ndarray]:
    """A tiny network in the layout of the public RichHF checkpoint: 32 px, patch 8, short heads."""
    state = {f"vit.{name}": value for name, value in vit_state().items()}
    t5 = {**t5_state(), "shared.weight": draw({"x": (vocabulary, 16)})["x"]}
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        t5[copy] = t5["shared.weight"]
    state |= {f"t5.{name}": value for name, value in t5.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "visual_token_projection.weight": (16, 16),
        "visual_token_projection.bias": (16,),
    }

    def conv(name: str, inputs: int, outputs: int, *norms: str, transposed: bool = False) -> None:
        shapes[f"{name}.weight"] = (inputs, outputs, 3, 3) if transposed else (outputs, inputs, 3, 3)
        shapes[f"{name}.bias"] = (outputs,)
        shapes.update({f"{norm}.scale": (outputs, 1, 1) for norm in norms})

    for kind in ("implausibility", "misalignment"):
        head = f"heatmap_predictor.{kind}."
        conv(f"{head}conv_layers.0", 16, 12, f"{head}conv_layers.2")
        for number, (inputs, outputs) in enumerate([(12, 10), (10, 6)]):
            up, two = f"{head}deconv_layers.{number}", f"{head}conv_layers2.{number}"
            conv(f"{up}.0", inputs, outputs, f"{up}.1", transposed=True)
            conv(f"{two}.0", outputs, outputs, f"{two}.1")
            conv(f"{two}.3", outputs, outputs, f"{two}.4")
        conv(f"{head}last_conv1", 6, 6)
        conv(f"{head}last_conv2", 6, 1)
    for kind in ("plausibility", "alignment", "aesthetics", "overall"):
        head = f"score_predictor.{kind}."
        conv(f"{head}conv_layers.0", 16, 8, f"{head}conv_layers.1")
        conv(f"{head}conv_layers.3", 8, 3, f"{head}conv_layers.4")
        for number, (inputs, outputs) in enumerate([(3 * 16, 7), (7, 1)]):
            shapes[f"{head}linear_layers.{2 * number}.weight"] = (outputs, inputs)
            shapes[f"{head}linear_layers.{2 * number}.bias"] = (outputs,)
    return state | draw(shapes, seed=1)
