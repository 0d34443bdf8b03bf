"""The whole network: dropout, precision, pixels, options, and annotations checked at run time."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import LossConfig, ScoreHeadConfig
from rahf.critic import losses
from rahf.critic.networks.build import build
from rahf.nn import functional
from tests.helpers.model_maker import OTHER, PLAIN, compiled, fake, made


def model_of(config):
    graphdef, params = made(config)
    return functional.merge(graphdef, params)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


# Dropout


def dropping(rate):
    return dataclasses.replace(
        PLAIN,
        vit=dataclasses.replace(PLAIN.vit, dropout=rate),
        t5=dataclasses.replace(PLAIN.t5, dropout=rate),
        heatmap_head=dataclasses.replace(PLAIN.heatmap_head, dropout=rate),
        score_head=dataclasses.replace(PLAIN.score_head, dropout=rate),
    )


def random_key(seed):
    return jax.random.key(seed, impl="unsafe_rbg")  # compiles in a fraction of the time


def test_dropout_is_a_matter_of_keys():
    graphdef, _ = made(dropping(0.3))
    (_, params), batch = made(PLAIN), fake()
    run = jax.jit(lambda params, key: functional.merge(graphdef, params)(batch, key))
    one, same, other = (run(params, random_key(seed)) for seed in (0, 0, 1))
    without = compiled(PLAIN)(params, batch)[0]
    for a, b, c, d in zip(*map(jax.tree.leaves, (one, same, other, without))):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-2 and np.abs(a - d).max() > 1e-2


def test_without_key_or_rate_there_is_no_dropout():
    def program(config, *key):
        graphdef, params = made(config)
        forward = lambda p, b, *k: functional.merge(graphdef, p)(b, *k)
        return str(jax.make_jaxpr(forward)(params, fake(), *key))

    assert program(dropping(0.3)) == program(PLAIN)
    assert "random_bits" in program(dropping(0.3), random_key(0))
    assert "random_bits" not in program(PLAIN, random_key(0))


@pytest.mark.parametrize("part", ["vit", "t5", "heatmap_head", "score_head"])
def test_each_part_has_its_own_rate(part):
    config = dataclasses.replace(PLAIN, **{part: getattr(dropping(0.3), part)})
    graphdef, params = made(config)
    forward = lambda p, b, k: functional.merge(graphdef, p)(b, k)
    assert "random_bits" in str(jax.make_jaxpr(forward)(params, fake(), jax.random.key(0)))


# Precision


def test_bfloat16_is_close_to_float32():
    half = dataclasses.replace(PLAIN, compute_dtype="bfloat16")
    graphdef, params = made(half)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    actual, expected = compiled(half)(params, fake()), compiled(PLAIN)(made(PLAIN)[1], fake())
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert a.dtype == jnp.float32
        error = np.square(np.asarray(a - b)).mean() ** 0.5
        assert error <= 0.05 * np.square(np.asarray(b)).mean() ** 0.5
    assert np.abs(actual[0].scores - expected[0].scores).max() > 1e-6  # it is another arithmetic
    loss = lambda p: losses.total(LossConfig(), functional.merge(graphdef, p)(fake()), fake())[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss), params)))


# Pixels


def test_pixels_are_normalised():
    model = model_of(dataclasses.replace(PLAIN, image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 1.0)))
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = (image / 255 - [0.5, 0.25, 0.0]) / [0.5, 0.25, 1.0]
    close(model.pixels(jnp.asarray(image)), expected)
    close(model.pixels(jnp.asarray(image / np.float32(255))), expected)


def test_other_sizes_are_resized_and_differentiable():
    model = model_of(PLAIN)
    halves = np.zeros((1, 32, 32, 3), np.float32)
    halves[:, :, 16:] = 1.0
    small = np.asarray(model.pixels(halves))
    assert small.shape == (1, 16, 16, 3)
    close(small[0, :, [0, 6]], -1.0)
    close(small[0, :, [9, 15]], 1.0)
    close(model.pixels(np.full((1, 9, 25, 3), 0.75, np.float32)), 0.5)  # no border darkens
    pixels = np.random.default_rng(0).random((1, 24, 20, 3), np.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.square(model.image_tokens(x)[..., 0]).sum()))(pixels)
    assert gradient.shape == pixels.shape and np.isfinite(gradient).all()
    assert (np.abs(gradient).max(-1) > 1e-6).mean() > 0.95


# Options


def test_impossible_networks():
    def shapes(**change):
        return functional.abstract(build(dataclasses.replace(PLAIN, **change)))

    with pytest.raises(ValueError, match="image_size 20 is not a multiple of patch_size 8"):
        shapes(image_size=20)
    with pytest.raises(ValueError, match="too small for VALID padding"):
        shapes(score_head=ScoreHeadConfig(conv_widths=(8, 8), padding="VALID"))


def test_options_name_their_parameters():
    _, plain = functional.abstract(build(PLAIN))
    _, other = functional.abstract(build(OTHER))
    assert "output" in plain and "output" not in other
    assert "class_token" in other["vit"] and "class_token" not in plain["vit"]
    assert other["vit"]["position"].shape == (17, 16) and plain["vit"]["position"].shape == (4, 16)
    assert "gate" in plain["encoder"]["layer_0"]["ff"] and "gate" not in other["encoder"]["layer_0"]["ff"]
    assert "bias" not in other["heatmap_implausibility"]["norm_0"]
    names = {"heatmap_implausibility", "heatmap_misalignment"}
    names |= {"score_plausibility", "score_alignment", "score_aesthetics", "score_overall"}
    assert names <= set(plain) and names <= set(other)


def test_heads_do_not_share_parameters():
    """The heads are in the order of HEATMAPS and SCORES, each with parameters of its own."""
    _, params = made(PLAIN)
    expected = compiled(PLAIN)(params, fake())[0]
    names = ("score_plausibility", "score_alignment", "score_aesthetics", "score_overall")
    for number, name in enumerate(names):
        out = params[name]["out"] | {"bias": params[name]["out"]["bias"] + 1}
        actual = compiled(PLAIN)(params | {name: params[name] | {"out": out}}, fake())[0]
        close(actual.scores - expected.scores, np.eye(4)[[number] * 3])
    head = params["heatmap_misalignment"]
    head = head | {"out": head["out"] | {"bias": head["out"]["bias"] + 1}}
    actual = compiled(PLAIN)(params | {"heatmap_misalignment": head}, fake())[0]
    close((actual.heatmaps - expected.heatmaps).mean((0, 1, 2)), [0.0, 1.0])


TYPED = """
import sys
sys.path.insert(0, {root!r})
from jaxtyping import install_import_hook
with install_import_hook(["rahf.nn", "rahf.critic.losses"], "beartype.beartype"):
    from tests.helpers import model_maker
    import rahf.critic.losses
import jax
from rahf.critic.networks.build import build
for config in (*model_maker.BOTH.values(), model_maker.AUGMENTED):
    run, (graphdef, params), batch = model_maker.compiled(config), model_maker.made(config), model_maker.fake()
    jax.eval_shape(run, params, batch, jax.random.key(0))
    jax.eval_shape(model_maker.generating(config, 7), params, batch)
step = lambda p, b, key: rahf.critic.losses.sampled(
    model_maker.LossConfig(), model_maker.functional.merge(graphdef, p).sample(b, key, key), b
)
jax.eval_shape(step, params, batch, jax.random.key(0))
try:
    jax.eval_shape(rahf.critic.losses.masked_mean, batch.scores, batch.heatmap_mask)
except Exception as error:
    print(type(error).__name__)
"""


def test_annotated_shapes_are_true(pytestconfig):
    """Everything once more with jaxtyping's annotations checked at run time."""
    pytest.importorskip("beartype", reason="checking annotations needs beartype: pip install rahf[test]")
    program = TYPED.format(root=str(pytestconfig.rootpath))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "TypeCheckError"  # and wrong ones are noticed
