"""The baselines as networks: what they predict and what not, and how losses and metrics treat that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from rahf.config import CriticConfig, LossConfig, ResNetBaselineConfig, ResNetConfig
from rahf.core.batch import HEATMAPS, SCORES, fake
from rahf.critic import apply, families, losses
from rahf.critic.networks.build import build, parameter_table
from rahf.nn import functional
from rahf.nn.resnet import ResNet
from tests.helpers.baseline_maker import CLIP, RESNET, clip

GRADIENT = clip(heatmap="gradient", cosine_scores=("alignment", "overall"))
TRAINED = clip(scores="trained")


def parts(config):
    graphdef, _ = functional.abstract(build(config))
    stream = np.random.default_rng(1)
    flat = functional.flatten(functional.init(build(config), 0))
    noisy = {k: v + 0.1 * stream.standard_normal(v.shape, np.float32) for k, v in flat.items()}
    return graphdef, functional.unflatten(noisy)


def batch(size=16):
    return fake(3, size, text_length=9, target_length=11, max_words=5, vocab_size=48, seed=1)


@pytest.mark.parametrize("config", [RESNET, GRADIENT, TRAINED], ids=["resnet", "gradient", "trained"])
def test_outputs_are_what_is_said_and_nan_else(config):
    graphdef, params = parts(config)
    outputs, inputs = families.outputs(config), batch(config.image_size)

    @jax.jit
    def run(params):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(inputs.image), inputs.text_ids, inputs.text_mask)
        return model(inputs), apply.predict(model, inputs, 4, fused), model.generate(fused, 5)

    logits, actual, generated = jax.device_get(run(params))
    assert generated is None and logits.sequence is None
    assert actual.heatmaps.shape == (3, config.image_size, config.image_size, 2) and actual.scores.shape == (3, 4)
    for values, mask in ((actual.scores, outputs.score_mask), (actual.heatmaps, outputs.heatmap_mask)):
        for column, known in enumerate(mask):
            assert np.isfinite(values[..., column]).all() if known else np.isnan(values[..., column]).all()
            assert not known or (0 <= values[..., column].min() and values[..., column].max() <= 1)
            assert not known or np.ptp(values[..., column]) > 1e-4
    assert np.isnan(actual.word_probabilities).all() and actual.word_probabilities.shape == (3, 5)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits.scores)), actual.scores, rtol=1e-5)
    assert set(outputs.predicted(actual)) == {"heatmaps", "scores"}


def test_what_kinds_predict():
    assert families.outputs(CriticConfig()) == families.Outputs()
    assert families.outputs(RESNET) == (SCORES, HEATMAPS, False, ())
    assert families.outputs(CLIP) == (("alignment",), (), False, ())
    assert families.outputs(GRADIENT) == (("alignment", "overall"), ("misalignment",), False, ())
    assert families.outputs(TRAINED) == (SCORES, (), False, ())


def test_metrics_that_can_be_measured():
    outputs = families.outputs(GRADIENT)
    yes = ("scores/alignment/plcc", "heatmaps/misalignment/cc", "loss/total", "loss/heatmap", "loss/score")
    no = ("scores/aesthetics/count", "scores/mean/plcc", "heatmaps/implausibility/mse", "keywords/f1")
    no += ("keywords_constrained/f1", "loss/keyword")
    assert all(map(outputs.covers, yes)) and not any(map(outputs.covers, no))
    assert all(map(families.Outputs().covers, (*yes, *no)))
    assert families.outputs(RESNET).covers("scores/mean/srcc") and not families.outputs(TRAINED).covers("loss/heatmap")


def test_a_batch_without_the_labels_of_what_is_not_predicted():
    inputs = batch()
    assert families.Outputs().narrow(inputs) is inputs
    narrow = families.outputs(GRADIENT).narrow(inputs)
    np.testing.assert_array_equal(narrow.score_mask, [[False, True, False, True]] * 3)
    np.testing.assert_array_equal(narrow.heatmap_mask, [[False, True]] * 3)
    assert not narrow.target_mask.any() and not narrow.word_mask.any()
    assert narrow.example_mask.all() and inputs.word_mask.any()


@pytest.mark.parametrize(
    "config, kind", [(RESNET, "bce"), (GRADIENT, "mse"), (TRAINED, "bce")], ids=["resnet", "gradient", "trained"]
)
def test_losses_leave_out_what_is_not_predicted(config, kind):
    """The loss is that of the predicted labels alone, and no NaN reaches a gradient."""
    graphdef, params = parts(config)
    outputs, inputs = families.outputs(config), batch(config.image_size)
    narrow = outputs.narrow(inputs)
    loss_config = LossConfig(heatmap_loss=kind, score_loss=kind)

    def loss(params):
        logits = functional.merge(graphdef, params)(narrow)
        return losses.total(loss_config, logits, narrow, suffix_id=4)[1], logits

    def total(params):
        actual = loss(params)
        return sum(actual[0]), actual

    (_, (actual, logits)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    def expected(values, target, mask):
        each = []
        for column, known in enumerate(mask):
            x, y = np.asarray(values[..., column], np.float64), np.asarray(target[..., column], np.float64)
            p = 1 / (1 + np.exp(-x))
            values_of = (p - y) ** 2 if kind == "mse" else -y * np.log(p) - (1 - y) * np.log1p(-p)
            each += [np.mean(values_of)] if known else []
        return np.mean(each) if each else 0.0

    assert float(actual.score) == pytest.approx(expected(logits.scores, inputs.scores, outputs.score_mask), rel=1e-4)
    assert float(actual.heatmap) == pytest.approx(
        expected(logits.heatmaps, inputs.heatmaps / 255.0, outputs.heatmap_mask), rel=1e-4
    )
    assert float(actual.keyword) == 0.0
    flat = {path: np.asarray(g) for path, g in functional.flatten(gradients).items()}
    assert all(np.isfinite(g).all() for g in flat.values())
    assert sum(np.abs(g).sum() > 0 for g in flat.values()) > 0.7 * len(flat)


# CLIP


def test_gradient_map_is_the_gradient():
    """Against central differences of the cosine in single pixels."""
    config = clip(heatmap="gradient", heatmap_blur=0.0)
    graphdef, params = parts(config)
    inputs = batch()

    @jax.jit
    def run(pixels):
        model = functional.merge(graphdef, params)
        fused = model.fuse(pixels, inputs.text_ids, inputs.text_mask)
        return model.cosine(fused), model.gradient_map(fused)

    pixels = np.array(functional.merge(graphdef, params).image_tokens(jnp.asarray(inputs.image)))
    _, actual = run(pixels)
    assert np.allclose(actual.max((1, 2)), 1.0)
    step, places, slopes = 0.05, [(2, 3), (9, 12), (14, 1), (7, 7)], []
    for y, x in places:
        total = np.zeros(3)
        for colour in range(3):
            up, down = pixels.copy(), pixels.copy()
            up[:, y, x, colour] += step
            down[:, y, x, colour] -= step
            total += np.abs(np.asarray(run(up)[0], np.float64) - np.asarray(run(down)[0])) / (2 * step)
        slopes.append(total)
    slopes, values = np.array(slopes), np.array([actual[:, y, x] for y, x in places])
    np.testing.assert_allclose(values / values.sum(0), slopes / slopes.sum(0), atol=0.01)


def test_gradient_map_lies_where_the_network_looks():
    """Patches whose embedding is cut off from the class token get nothing, but for the blur at their edge."""
    config = clip(heatmap="gradient", heatmap_blur=0.02)
    graphdef, params = parts(config)
    inputs = batch()
    model = functional.merge(graphdef, params)
    seen = jnp.zeros((16, 16, 1)).at[8:, :8].set(1.0)  # one of the four patches
    plain = type(model).image_embedding

    class Blinkered(type(model)):
        def image_embedding(self, pixels, key=None):
            return plain(self, pixels * seen, key)

    model.__class__ = Blinkered
    fused = model.fuse(model.image_tokens(inputs.image), inputs.text_ids, inputs.text_mask)
    actual = np.asarray(model.gradient_map(fused))
    assert actual[:, 8:, :8].sum() > 0.97 * actual.sum() > 0
    assert (actual.reshape(3, -1).argmax(1) // 16 >= 8).all() and (actual.reshape(3, -1).argmax(1) % 16 < 8).all()


def test_blur_is_a_gaussian():
    from rahf.critic.networks.clip import _blur

    picture = np.random.default_rng(0).random((40, 40))
    matrix = _blur(40, 2.0).astype(np.float64)
    expected = scipy.ndimage.gaussian_filter(picture, 2.0, truncate=8)
    np.testing.assert_allclose((matrix @ picture @ matrix.T)[14:-14, 14:-14], expected[14:-14, 14:-14], rtol=1e-4)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(_blur(5, 0.0), np.eye(5))


def test_text_is_read_at_its_end_whatever_follows():
    graphdef, params = parts(CLIP)
    embed = jax.jit(lambda ids: functional.merge(graphdef, params).text_embedding(ids))
    ids = np.array([[7, 9, 1, 0, 0], [7, 9, 1, 33, 1], [7, 1, 9, 0, 0]], np.int32)
    actual = np.asarray(embed(ids))
    np.testing.assert_allclose(actual[0], actual[1], atol=1e-6)
    assert np.abs(actual[0] - actual[2]).max() > 1e-3
    with pytest.raises(ValueError, match="13 tokens, but this CLIP has 12 positions.*max_prompt_tokens"):
        embed(np.ones((1, 13), np.int32))


def test_clip_needs_a_class_token_and_known_scores():
    with pytest.raises(ValueError, match="class_token"):
        functional.abstract(build(dataclasses.replace(CLIP, vit=dataclasses.replace(CLIP.vit, class_token=False))))
    with pytest.raises(ValueError, match="no score 'beauty'; known"):
        functional.abstract(build(clip(cosine_scores=("beauty",))))


# ResNet


def test_resnet_50_at_full_size():
    config = ResNetBaselineConfig()
    table = parameter_table(config)
    # torchvision's resnet50 has 25,557,032 parameters, 2,049,000 of them in the classifier.
    assert table["resnet"] == 25_557_032 - 2_049_000
    graphdef, params = functional.abstract(build(config))

    def run(params, image):
        model = functional.merge(graphdef, params)
        features = model.image_tokens(image)
        return features, model.heatmap_logits(features), model.score_logits(features)

    shapes = jax.eval_shape(run, params, jax.ShapeDtypeStruct((2, 512, 512, 3), np.uint8))
    assert [x.shape for x in shapes] == [(2, 16, 16, 2048), (2, 512, 512, 2), (2, 4)]


def test_a_fresh_resnet_passes_signals_of_the_same_size():
    """Every block begins as the identity, so depth changes nothing: it could not be trained else without statistics."""
    image = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    spread = []
    for depth in (1, 6):
        config = ResNetConfig(8, (16, 16), (depth, depth))
        network = functools.partial(ResNet, config, dtype=jnp.dtype("float32"))
        graphdef, _ = functional.abstract(network)
        spread.append(float(jnp.std(functional.merge(graphdef, functional.init(network, 0))(image))))
    assert spread[0] == pytest.approx(spread[1], rel=1e-5) and 0.2 < spread[0] < 5
