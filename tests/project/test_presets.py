"""The presets for RichHF-18K: their sizes counted by hand, their recipes, and a step of each, shrunk."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.config import overrides
from rahf.core import batch as batch_lib
from rahf.critic import tower_cache
from rahf.critic.networks import build
from rahf.critic.published import richhf_torch
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.pretrained import files, strict
from rahf.training import optimizer as optimizer_lib
from rahf.training import sharding, trainable
from rahf.training import state as state_lib
from rahf.training.step import make_train_step
from tests.helpers import preset_maker

PRESETS = ("paper", "vitl", "fast")


def load(name):
    return config_lib.load(f"richhf18k_{name}.py")


@pytest.fixture(params=PRESETS)
def preset(request):
    return load(request.param)


# Sizes, by hand


def dense(inputs, outputs):
    return inputs * outputs + outputs


def conv(inputs, outputs, size=3):
    return size * size * inputs * outputs + outputs


def vit(width, depth, mlp, side, class_token):
    layer = 4 * dense(width, width) + dense(width, mlp) + dense(mlp, width) + 2 * 2 * width
    tokens = (side // 16) ** 2 + class_token
    return dense(16 * 16 * 3, width) + (tokens + class_token) * width + depth * layer + 2 * width


def t5_stack(mlp, matrices, attentions):
    layer = attentions * (4 * 768**2 + 768) + matrices * 768 * mlp + 768
    return 12 * layer + 768 + 32 * 12  # the last norm, and one table of relative positions


def heatmap_head(stages, norm):
    """Widths 768 → 768, 384; `norm` parameters per channel; every stage has a transposed convolution and two more."""
    total, width = conv(768, 768) + norm * 768 + conv(768, 384) + norm * 384, 384
    for out in stages:
        total += conv(width, out) + 2 * conv(out, out) + 3 * norm * out
        width = out
    return total + conv(width, width) + conv(width, 1)


def score_head(widths, size, grid, dense_widths, norm):
    total, width = 0, 768
    for out in widths:
        total, width = total + conv(width, out, size) + norm * out, out
    width *= grid**2
    for out in (*dense_widths, 1):
        total, width = total + dense(width, out), out
    return total


RMS_SCORES = score_head((768, 384, 192, 96, 48, 12), 3, 24, (512, 128), 1)
VIT_L = vit(1024, 24, 4096, 384, True)
#: Parts that occur once, one heatmap head, one score head.
BY_HAND = {
    "paper": (
        {
            "vit": vit(768, 12, 3072, 512, False),
            "projection": dense(768, 768),
            "embedding": 32128 * 768,
            "output": 32128 * 768,
            "encoder": t5_stack(2048, 3, 1),
            "decoder": t5_stack(2048, 3, 2),
        },
        heatmap_head((768, 384, 384, 192), 2),
        score_head((768, 384, 128, 64), 2, 32, (2048, 1024), 2),
    ),
    "vitl": (
        {
            "vit": VIT_L,
            "projection": dense(1024, 768),
            "embedding": 32128 * 768,
            "encoder": t5_stack(3072, 2, 1),
            "decoder": t5_stack(3072, 2, 2),
        },
        heatmap_head((768, 384, 384, 192), 1),
        RMS_SCORES,
    ),
    "24gb": (
        {
            "vit": vit(768, 12, 3072, 384, False),
            "projection": dense(768, 768),
            "embedding": 32128 * 768,
            "output": 32128 * 768,
            "encoder": t5_stack(2048, 3, 1),
            "decoder": t5_stack(2048, 3, 2),
        },
        heatmap_head((384, 192), 2),  # 24 → 48 → 96, a quarter of 384
        score_head((384, 192), 2, 8, (512,), 2),
    ),
    "fast": (
        {
            "vit": VIT_L,
            "projection": dense(1024, 768),
            "embedding": 32128 * 768,
            "encoder": t5_stack(3072, 2, 1),
            "decoder": t5_stack(3072, 2, 2),
        },
        heatmap_head((768, 384), 1),  # 24 → 48 → 96, a quarter of 384
        RMS_SCORES,
    ),
}


@pytest.mark.parametrize("name", (*PRESETS, "24gb"))
def test_parameters_counted_by_hand(name):
    once, heatmap, score = BY_HAND[name]
    expected = once | {f"heatmap_{n}": heatmap for n in batch_lib.HEATMAPS}
    expected |= {f"score_{n}": score for n in batch_lib.SCORES}
    assert build.parameter_table(load(name).model) == expected


def test_parameters_that_publications_name():
    """Spec 2.4 and the published checkpoints' own counts, in millions or to the digit."""
    table = {name: build.parameter_table(load(name).model) for name in PRESETS}
    paper = {name: round(count / 1e6, 1) for name, count in table["paper"].items()}
    assert paper["score_overall"] == 140.1 and paper["heatmap_misalignment"] == 32.2
    assert round(table["paper"]["encoder"] / 1e6, 2) == round(table["vitl"]["encoder"] / 1e6, 2) == 84.95
    assert table["vitl"]["vit"] == 303_690_752  # ViT-L/16 at 384 without pooler and classifier
    t5_base = sum(table["vitl"][part] for part in ("embedding", "encoder", "decoder"))
    assert t5_base == 222_903_552
    assert round(sum(table["paper"].values()) / 1e6, 1) == 959.4
    assert "output" not in table["vitl"]


def test_the_ports_network_is_that_of_the_public_checkpoint():
    """The sizes that `rahf import richhf-torch` reads from the published names and shapes."""
    shapes = {
        "vit.embeddings.patch_embeddings.projection.weight": (1024, 3, 16, 16),
        "vit.embeddings.position_embeddings": (1, 577, 1024),
        "vit.encoder.layer.0.intermediate.dense.weight": (4096, 1024),
        "t5.shared.weight": (32128, 768),
        "t5.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 12),
        "t5.encoder.block.0.layer.0.SelfAttention.q.weight": (768, 768),
        "t5.encoder.block.0.layer.1.DenseReluDense.wi.weight": (3072, 768),
    }
    shapes |= {f"vit.encoder.layer.{n}.layernorm_before.weight": (1024,) for n in range(24)}
    for stack in ("encoder", "decoder"):
        shapes |= {f"t5.{stack}.block.{n}.layer.0.layer_norm.weight": (768,) for n in range(12)}
    heatmap, score = "heatmap_predictor.implausibility.", "score_predictor.plausibility."
    for number, (inputs, outputs) in enumerate([(768, 768), (768, 384)]):
        shapes[f"{heatmap}conv_layers.{3 * number}.weight"] = (outputs, inputs, 3, 3)
    for number, (inputs, outputs) in enumerate([(384, 768), (768, 384), (384, 384), (384, 192)]):
        shapes[f"{heatmap}deconv_layers.{number}.0.weight"] = (inputs, outputs, 3, 3)
    width = 768
    for number, outputs in enumerate((768, 384, 192, 96, 48, 12)):
        shapes[f"{score}conv_layers.{3 * number}.weight"] = (outputs, width, 3, 3)
        width = outputs
    for number, (inputs, outputs) in enumerate([(12 * 24 * 24, 512), (512, 128), (128, 1)]):
        shapes[f"{score}linear_layers.{2 * number}.weight"] = (outputs, inputs)
    stored = {name: files.StoredTensor(shape, "F32", "x.pt", lambda: None) for name, shape in shapes.items()}
    inferred = richhf_torch.infer(strict.Taker(stored, "x.pt"))
    ours = load("vitl").model
    assert inferred == dataclasses.replace(ours, t5=dataclasses.replace(ours.t5, dropout=0.0))


# Recipes


def test_the_papers_recipe():
    config = load("paper")
    assert (config.data.batch_size, config.train.steps, config.optimizer.kind) == (256, 20_000, "adamw")
    rate = optimizer_lib.schedule(config.optimizer, config.train.steps)
    found = [float(rate(step)) for step in (1000, 2000, 5000, 20_000)]
    assert found == pytest.approx([0.0075, 0.015, 0.00949, 0.00474], abs=5e-6)


def test_the_ports_recipe():
    config = load("vitl")
    assert config.train.steps == math.floor(30 * 15_810 / config.data.batch_size + 0.5)
    rate = optimizer_lib.schedule(config.optimizer, config.train.steps)
    assert [float(rate(s)) for s in (1, config.train.steps)] == pytest.approx([2e-5, 1e-5])
    # Our parts are means over the heads, the port's are sums with weight 1.
    loss = config.loss
    assert (loss.heatmap_weight / 2, loss.score_weight / 4, loss.keyword_weight) == (1, 1, 1)


def test_the_fast_preset_differs_from_the_ports_network_in_little():
    fast, port = (dataclasses.asdict(load(name).model) for name in ("fast", "vitl"))
    different = {name for name in fast if fast[name] != port[name]}
    assert different == {"heatmap_head", "decoder_sees", "compute_dtype"}
    assert fast["heatmap_head"] == port["heatmap_head"] | {"kind": "quarter"}


def test_the_lite_critic_is_small_and_its_tower_can_be_cached():
    config = config_lib.load("critic/lite.py")
    table = build.parameter_table(config.model)
    assert sum(table.values()) <= 8e6
    assert table["tower"] == 2_958_848  # Lite0 without its last convolution and its classifier
    tower_cache.check(config)
    _, shapes = functional.abstract(build.build(config.model))
    tower_cache.check_frozen(config, shapes)
    moving = trainable.matching_paths(list(functional.flatten(shapes)), config.optimizer.trainable, "trainable")
    assert {path.split("/")[0] for path in moving} == set(shapes) - {"tower"}
    shipped = config_lib.load("critic/lite_tower.py")
    assert shipped.start.model == config.workdir
    moving = trainable.matching_paths(list(functional.flatten(shapes)), shipped.optimizer.trainable, "trainable")
    frozen = {path.rsplit("/", 2)[0] for path in set(functional.flatten(shapes)) - set(moving)}
    assert frozen == {"tower", "tower/stage_0_0", "tower/stage_1_0", "tower/stage_1_1"}
    assert shipped.model == dataclasses.replace(config.model, tower_rate=0.5) and not shipped.start.fresh


def test_docstrings_say_command_hardware_time_and_where_the_metrics_are():
    for name in (*PRESETS, "24gb"):
        file = config_lib.find(f"richhf18k_{name}.py")
        text = pathlib.Path(file).read_text()
        for line in ("Command:   ", "Hardware:  ", "Time:      ", "Metrics:   docs/results.md"):
            assert f"\n{line}" in text, (name, line)
        assert f"rahf train configs/critic/{file.name}" in text
        assert "estimate, not measured" in text  # until it is


def test_every_field_is_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        overrides.parse("configs/critic/richhf18k_paper.py", ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for part in ("--start.vision", "google/vit-base-patch16-384", "--model.heatmap-head.kind", "--start.fresh"):
        assert part in shown


# A step


def test_shrinking_keeps_the_structure(preset):
    small = preset_maker.shrink(preset)
    assert preset_maker.structure(small) == preset_maker.structure(preset)
    assert len(preset_maker.structure(preset)) > 60
    assert sum(build.parameter_table(small.model).values()) < 200_000
    names = functional.flatten(functional.abstract(build.build(preset.model))[1])
    fewer = functional.flatten(functional.abstract(build.build(small.model))[1])
    assert set(fewer) < set(names)
    for part in (names, fewer):  # which tell the flags: norms without bias, a class token, tied embeddings
        assert ("heatmap_misalignment/norm_0/bias" in part) == (preset.model.heatmap_head.norm == "layer")
        assert ("vit/class_token" in part) == preset.model.vit.class_token
        assert ("output" in part) != preset.model.t5.tie_embeddings
    stages = {path.split("/")[1] for path in fewer if path.startswith("heatmap_misalignment/up_")}
    assert len(stages) == (1 if preset.model.heatmap_head.kind == "quarter" else 2)


def test_a_step_of_each(preset):
    config = preset_maker.shrink(preset)
    made = state_lib.setup(CriticTask(config, None), jax.devices()[:1])
    state = state_lib.create(CriticTask(config, None), made)
    before = jax.tree.map(np.asarray, state.params)
    batch = batch_lib.fake(2, preset_maker.IMAGE_SIZE, text_length=9, target_length=11, max_words=5, vocab_size=64)
    task = CriticTask(config, None)
    task.suffix_id = 4
    step = make_train_step(task, made)
    state, metrics = step(state, sharding.to_devices(batch, made.mesh))
    assert int(state.step) == 1 and all(np.isfinite(value) for value in jax.tree.leaves(metrics))
    moved = functional.flatten(jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before))
    still = [path for path, change in moved.items() if change == 0]
    assert not still, still
