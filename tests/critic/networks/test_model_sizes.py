"""Networks at full size by shapes alone: parameter counts, and a complete forward pass without arithmetic."""

import dataclasses

import jax
import numpy as np
import pytest

from rahf.config import CriticConfig, HeatmapHeadConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.core.batch import Batch, spec
from rahf.critic import apply
from rahf.critic.networks import heads
from rahf.critic.networks.build import build, parameter_table
from rahf.nn import functional, t5, vit

F32 = np.dtype("float32")
LARGE = ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096)
T5_BASE = T5Config(mlp_width=3072, ff="relu", tie_embeddings=True)


def count(network):
    return functional.count(functional.abstract(network)[1])


@pytest.mark.parametrize(("config", "matrices"), [(T5Config(), 3 * 2048), (T5_BASE, 2 * 3072)])
def test_both_t5_base_encoders_have_84_95_million(config, matrices):
    parameters = count(lambda: t5.Encoder(config, dtype=F32))
    assert parameters == 12 * (4 * 768**2 + matrices * 768 + 2 * 768) + 768 + 32 * 12
    assert round(parameters / 1e6, 2) == 84.95


@pytest.mark.parametrize("config", [T5Config(), T5_BASE])
def test_t5_base_decoder(config):
    encoder = count(lambda: t5.Encoder(config, dtype=F32))
    # a second attention and its norm in each of the 12 layers
    assert count(lambda: t5.Decoder(config, dtype=F32)) == encoder + 12 * (4 * 768**2 + 768)


def test_t5_base_as_published():
    total = 2 * count(lambda: t5.Encoder(T5_BASE, dtype=F32)) + 12 * (4 * 768**2 + 768) + 32128 * 768
    assert total == 222_903_552


@pytest.mark.parametrize(("widths", "millions"), [((768, 384), 32.2), ((384, 384), 28.2)])
def test_heatmap_head(widths, millions):
    head = HeatmapHeadConfig(conv_widths=widths)
    assert round(count(lambda: heads.HeatmapHead(768, 512, head, dtype=F32)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("side", "padding", "millions"), [(512, "SAME", 140.1), (512, "VALID", 108.6), (224, "SAME", 31.6)]
)
def test_score_head(side, padding, millions):
    head = ScoreHeadConfig(padding=padding)
    _, params = functional.abstract(lambda: heads.ScoreHead(768, side // 16, head, dtype=F32))
    assert round(functional.count(params) / 1e6, 1) == millions
    if side == 512:
        assert params["dense_0"]["kernel"].shape == ({"SAME": 65_536, "VALID": 50_176}[padding], 2048)


def test_pooling_makes_the_score_head_small():
    head = ScoreHeadConfig(pool=8)
    _, params = functional.abstract(lambda: heads.ScoreHead(768, 32, head, dtype=F32))
    assert params["dense_0"]["kernel"].shape == (8 * 8 * 64, 2048)


def test_vision_towers_as_published():
    base = ViTConfig(class_token=True)
    assert count(lambda: vit.ViT(base, 224, dtype=F32)) == 85_798_656  # ViT-B/16 without its classifier
    assert count(lambda: vit.ViT(dataclasses.replace(LARGE, class_token=True), 384, dtype=F32)) == 303_690_752
    without = count(lambda: vit.ViT(ViTConfig(), 224, dtype=F32))
    assert without == 85_798_656 - 2 * 768  # no class token, no position for it


def test_parts_of_the_network_of_the_paper():
    table = parameter_table(CriticConfig())
    assert list(table) == sorted(table)
    millions = {name: round(number / 1e6, 1) for name, number in table.items()}
    heatmap, score = 32.2, 140.1
    assert millions == {
        "decoder": 113.3,
        "embedding": 24.7,
        "encoder": 85.0,
        "heatmap_implausibility": heatmap,
        "heatmap_misalignment": heatmap,
        "output": 24.7,
        "projection": 0.6,
        "score_aesthetics": score,
        "score_alignment": score,
        "score_overall": score,
        "score_plausibility": score,
        "vit": 86.4,  # 1,024 positions at 512 pixels
    }
    assert sum(millions[n] for n in millions if n.startswith("score_")) > sum(table.values()) / 2e6


def test_a_preset_of_a_million():
    small = CriticConfig(
        image_size=64,
        vit=ViTConfig(patch_size=8, width=96, depth=2, heads=2, mlp_width=192, stem=(16,)),
        t5=T5Config(512, 96, head_width=32, heads=3, mlp_width=192, encoder_layers=3, decoder_layers=2),
        heatmap_head=HeatmapHeadConfig(conv_widths=(32,), up_widths=(16,)),
        score_head=ScoreHeadConfig(conv_widths=(32,), pool=2, dense_widths=(64,)),
    )
    assert 0.9e6 < sum(parameter_table(small).values()) < 1.1e6


def test_the_largest_network():
    """ViT-L/16 and T5-base at 512 pixels in bfloat16: outputs and gradients are float32."""
    config = CriticConfig(vit=LARGE, compute_dtype="bfloat16")
    graphdef, params = functional.abstract(build(config))
    table = parameter_table(config)
    assert functional.count(params) == sum(table.values())
    assert round(table["vit"] / 1e6) == 304 and table["projection"] == 1024 * 768 + 768
    shapes = spec(4, 512, 64, 64, 30)
    del shapes["index"]  # int64, which JAX does not have by default
    batch = Batch(**{name: jax.ShapeDtypeStruct(*s) for name, s in shapes.items()}, index=None)

    def run(params, batch):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        return fused, model(batch), apply.predict(model, batch, 834), model.generate(fused, 64)

    fused, logits, prediction, generated = jax.eval_shape(run, params, batch)
    assert fused.image.shape == (4, 32, 32, 768) and fused.memory.shape == (4, 1024 + 64, 768)
    assert fused.memory.dtype == np.dtype(jax.numpy.bfloat16)
    expected = [(4, 512, 512, 2), (4, 4), (4, 64, 32128)]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(logits)] == [(shape, F32) for shape in expected]
    assert [(x.shape, x.dtype) for x in prediction] == [(shape, F32) for shape in (*expected[:2], (4, 30))]
    assert (generated.shape, generated.dtype) == ((4, 64), np.dtype(np.int32))
