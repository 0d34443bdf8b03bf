"""The whole network: masks, causality, decoding, precision, options."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_maker import BOTH, OTHER, PLAIN, compiled, fake, generating, made, padded, with_garbage

from rahf import losses
from rahf.config import LossConfig, ScoreHeadConfig
from rahf.models import functional, t5
from rahf.models import rahf as model_lib
from rahf.text import EOS_ID, PAD_ID


@pytest.fixture(params=list(BOTH))
def config(request):
    return BOTH[request.param]


def model_of(config):
    graphdef, params = made(config)
    return functional.merge(graphdef, params)


def close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=tolerance)


# Outputs


def test_outputs(config):
    logits, loss, parts, prediction = compiled(config)(made(config)[1], fake())
    assert logits.heatmaps.shape == (3, 16, 16, 2) and logits.scores.shape == (3, 4)
    assert logits.sequence.shape == (3, 11, 48)
    for leaf in jax.tree.leaves((logits, loss, parts, prediction)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    close(prediction.heatmaps, jax.nn.sigmoid(logits.heatmaps))
    close(prediction.scores, jax.nn.sigmoid(logits.scores))
    close(loss, sum(parts))
    words = np.asarray(prediction.word_probabilities)
    assert ((words > 0) == (fake().word_end >= 0)).all() and (words < 1).all()
    for values in (*logits, prediction.word_probabilities[:, :2]):  # or else the tests below could not fail
        assert np.asarray(values).std(0).max() > 0.03
        assert np.asarray(values).std(-1).max() > 0.03


# Padding


@pytest.mark.parametrize("garbage", [False, True])
def test_padding_changes_nothing(config, garbage):
    run, (_, params), batch = compiled(config), made(config), fake()
    longer = with_garbage(padded(batch)) if garbage else padded(batch)
    assert longer.text_ids.shape == (5, 13) and longer.target_ids.shape == (5, 14)
    (wanted, loss, parts, prediction), found = run(params, batch), run(params, longer)
    real = batch.target_mask
    close(found[0].sequence[:3, :11][real], wanted.sequence[real])
    close(found[1], loss)
    close(jnp.stack(found[2]), jnp.stack(parts))
    close(found[3].heatmaps[:3], prediction.heatmaps)
    close(found[3].scores[:3], prediction.scores)
    close(found[3].word_probabilities[:3, :5], prediction.word_probabilities)
    assert not found[3].word_probabilities[:3, 5:].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_padding_inside_a_sequence_changes_nothing(config):
    batch = fake()
    assert not batch.text_mask.all() and not batch.target_mask.all()
    wanted = compiled(config)(made(config)[1], batch)
    found = compiled(config)(made(config)[1], with_garbage(batch))
    real = batch.target_mask
    np.testing.assert_array_equal(found[0].sequence[real], wanted[0].sequence[real])
    for part in (lambda out: out[0].heatmaps, lambda out: out[0].scores, lambda out: out[1:]):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), part(found), part(wanted)))


def test_real_tokens_do_change_the_outputs(config):
    """What the tests above could not tell from a network that ignores its text."""
    batch = fake()
    text = batch.text_ids.copy()
    text[:, 0] = text[:, 0] % 40 + 5
    wanted = compiled(config)(made(config)[1], batch)
    found = compiled(config)(made(config)[1], batch._replace(text_ids=text))
    for a, b in ((found[0].heatmaps, wanted[0].heatmaps), (found[0].scores, wanted[0].scores)):
        assert np.abs(a - b).max() > 1e-3
    assert np.abs(found[3].word_probabilities - wanted[3].word_probabilities).max() > 1e-3


# The decoder


def test_the_decoder_does_not_see_what_comes_later(config):
    batch = fake()
    later = batch.target_ids.copy()
    later[:, 4] = later[:, 4] % 40 + 5
    wanted = compiled(config)(made(config)[1], batch)[0].sequence
    found = compiled(config)(made(config)[1], batch._replace(target_ids=later))[0].sequence
    np.testing.assert_array_equal(found[:, :5], wanted[:, :5])  # logits at 4 predict target 4
    assert (np.abs(found - wanted)[:, 5:].max((1, 2)) > 1e-3).all()


def test_what_the_decoder_sees():
    """Without layers in the encoder, the memory is just the normalised tokens."""
    for sees in ("all", "text"):
        t5_config = dataclasses.replace(PLAIN.t5, encoder_layers=0)
        vit_config = dataclasses.replace(PLAIN.vit, class_token=True)
        model = model_of(dataclasses.replace(PLAIN, t5=t5_config, vit=vit_config, decoder_sees=sees))
        batch, tokens = fake(), np.random.default_rng(0).standard_normal((3, 5, 16), np.float32)
        fused = model.fuse(jnp.asarray(tokens), batch.text_ids, batch.text_mask)
        image, text = model.encoder.norm(tokens), model.encoder.norm(model.embed(batch.text_ids))
        close(fused.image, image[:, 1:].reshape(3, 2, 2, 16))  # the class token is no part of the grid
        close(fused.memory, text if sees == "text" else jnp.concatenate([image, text], 1))
        seen = np.ones((3, 0 if sees == "text" else 5), bool)
        np.testing.assert_array_equal(fused.memory_mask, np.concatenate([seen, batch.text_mask], 1))


def test_the_encoder_is_told_which_tokens_are_of_the_image(monkeypatch):
    calls, plain = [], t5.RelativeBias.__call__

    def call(self, *sizes):
        calls.append(sizes)
        return plain(self, *sizes)

    monkeypatch.setattr(t5.RelativeBias, "__call__", call)
    graphdef, params = made(OTHER)
    fuse = lambda p, tokens, b: functional.merge(graphdef, p).fuse(tokens, b.text_ids, b.text_mask)
    jax.eval_shape(fuse, params, jax.ShapeDtypeStruct((3, 17, 16), jnp.float32), fake())
    assert calls == [(17 + 9, 17)]


def check_generated(ids, logits):
    """Greedy up to the end of each sequence, padding behind it; returns lengths with the end."""
    ids, best = np.asarray(ids), np.asarray(logits).argmax(-1)
    lengths = [row.index(EOS_ID) + 1 if EOS_ID in row else len(row) for row in ids.tolist()]
    for row, wanted, length in zip(ids, best, lengths):
        np.testing.assert_array_equal(row[:length], wanted[:length])
        assert (row[length:] == PAD_ID).all()
    return lengths


def test_decoding(config, monkeypatch):
    steps, plain = [], t5.Decoder.step
    def step(self, x, position, cache, mask):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        return plain(self, x, position, cache, mask)

    monkeypatch.setattr(t5.Decoder, "step", step)
    length, batch, (_, params) = 12, fake(8), made(config)
    run = generating(config, length)
    ids, stepwise, forced = jax.device_get(run(params, batch))
    jax.effects_barrier()
    close(stepwise, forced, 2e-5)
    lengths = check_generated(ids, forced)
    assert sorted(steps) == sorted([*range(max(lengths)), *range(length)])
    # With another output for the end of sequence, some sequences end early; take only those.
    eager = with_another_end(params, config)
    lengths = np.array(check_generated(*run(eager, batch)[::2]))
    rows = np.resize(np.flatnonzero(lengths < length), 8)
    assert len(set(lengths[rows])) > 1
    steps.clear()
    ids, stepwise, forced = jax.device_get(run(eager, jax.tree.map(lambda x: x[rows], batch)))
    jax.effects_barrier()
    assert check_generated(ids, forced) == lengths[rows].tolist()
    assert sorted(steps) == sorted([*range(max(lengths[rows])), *range(length)])  # generate() went no further


def with_another_end(params, config):
    """Parameters with a random and larger output for the end of sequence."""
    name = "embedding" if config.t5.tie_embeddings else "output"
    matrix = np.array(params[name])
    end = 4 * np.random.default_rng(1).standard_normal(16)
    matrix[(EOS_ID, slice(None)) if config.t5.tie_embeddings else (slice(None), EOS_ID)] = end
    return params | {name: matrix}


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
    for a, b, c, d in zip(one, same, other, without):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-2 and np.abs(a - d).max() > 1e-2


def test_without_key_or_rate_there_is_no_dropout():
    def program(config, *key):
        graphdef, params = made(config)
        return str(jax.make_jaxpr(lambda p, b, *k: functional.merge(graphdef, p)(b, *k))(params, fake(), *key))

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
    found, wanted = compiled(half)(params, fake()), compiled(PLAIN)(made(PLAIN)[1], fake())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        assert a.dtype == jnp.float32
        error = np.square(np.asarray(a - b)).mean() ** 0.5
        assert error < 0.05 * np.square(np.asarray(b)).mean() ** 0.5
    assert np.abs(found[0].scores - wanted[0].scores).max() > 1e-6  # it is another arithmetic
    loss = lambda p: losses.total(LossConfig(), functional.merge(graphdef, p)(fake()), fake())[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss), params)))


# Pixels


def test_pixels_are_normalised():
    model = model_of(dataclasses.replace(PLAIN, image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 1.0)))
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    wanted = (image / 255 - [0.5, 0.25, 0.0]) / [0.5, 0.25, 1.0]
    close(model.pixels(jnp.asarray(image)), wanted)
    close(model.pixels(jnp.asarray(image / np.float32(255))), wanted)


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
    def build(**change):
        return functional.abstract(model_lib.build(dataclasses.replace(PLAIN, **change)))

    with pytest.raises(ValueError, match="image_size 20 is not a multiple of patch_size 8"):
        build(image_size=20)
    with pytest.raises(ValueError, match="too small for VALID padding"):
        build(score_head=ScoreHeadConfig(conv_widths=(8, 8), padding="VALID"))


def test_options_name_their_parameters():
    _, plain = functional.abstract(model_lib.build(PLAIN))
    _, other = functional.abstract(model_lib.build(OTHER))
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
    wanted = compiled(PLAIN)(params, fake())[0]
    for number, name in enumerate(("score_plausibility", "score_alignment", "score_aesthetics", "score_overall")):
        out = params[name]["out"] | {"bias": params[name]["out"]["bias"] + 1}
        found = compiled(PLAIN)(params | {name: params[name] | {"out": out}}, fake())[0]
        close(found.scores - wanted.scores, np.eye(4)[[number] * 3])
    out = params["heatmap_misalignment"]["out"]
    out = out | {"bias": out["bias"] + 1}
    found = compiled(PLAIN)(params | {"heatmap_misalignment": params["heatmap_misalignment"] | {"out": out}}, fake())[0]
    close((found.heatmaps - wanted.heatmaps).mean((0, 1, 2)), [0.0, 1.0])


TYPED = """
import sys
sys.path.insert(0, {tests!r})
from jaxtyping import install_import_hook
with install_import_hook(["rahf.models", "rahf.losses"], "beartype.beartype"):
    import model_maker
    import rahf.losses
import jax
for config in model_maker.BOTH.values():
    run, (_, params), batch = model_maker.compiled(config), model_maker.made(config), model_maker.fake()
    jax.eval_shape(run, params, batch, jax.random.key(0))
    jax.eval_shape(model_maker.generating(config, 7), params, batch)
try:
    jax.eval_shape(rahf.losses.masked_mean, batch.scores, batch.heatmap_mask)
except Exception as error:
    print(type(error).__name__)
"""


def test_annotated_shapes_are_true(pytestconfig):
    """Everything once more with jaxtyping's annotations checked at run time."""
    pytest.importorskip("beartype", reason="checking annotations needs beartype: pip install rahf[test]")
    program = TYPED.format(tests=str(pytestconfig.rootpath / "tests"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "TypeCheckError"  # and wrong ones are noticed
