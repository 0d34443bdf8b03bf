"""The whole network: outputs, padding, causality, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.nn import functional, t5
from rahf.text import EOS_ID, PAD_ID
from tests.helpers.model_maker import BOTH, OTHER, PLAIN, compiled, fake, generating, made, padded, with_garbage


@pytest.fixture(params=list(BOTH))
def config(request):
    return BOTH[request.param]


def model_of(config):
    graphdef, params = made(config)
    return functional.merge(graphdef, params)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


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
    for values in (*logits[:3], prediction.word_probabilities[:, :2]):  # or else the tests below could not fail
        assert np.asarray(values).std(0).max() > 0.03
        assert np.asarray(values).std(-1).max() > 0.03


# Padding


@pytest.mark.parametrize("garbage", [False, True])
def test_padding_changes_nothing(config, garbage):
    run, (_, params), batch = compiled(config), made(config), fake()
    longer = with_garbage(padded(batch)) if garbage else padded(batch)
    assert longer.text_ids.shape == (5, 13) and longer.target_ids.shape == (5, 14)
    (expected, loss, parts, prediction), actual = run(params, batch), run(params, longer)
    real = batch.target_mask
    close(actual[0].sequence[:3, :11][real], expected.sequence[real])
    close(actual[1], loss)
    close(jnp.stack(actual[2]), jnp.stack(parts))
    close(actual[3].heatmaps[:3], prediction.heatmaps)
    close(actual[3].scores[:3], prediction.scores)
    close(actual[3].word_probabilities[:3, :5], prediction.word_probabilities)
    assert not actual[3].word_probabilities[:3, 5:].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actual))


def test_padding_inside_a_sequence_changes_nothing(config):
    batch = fake()
    assert not batch.text_mask.all() and not batch.target_mask.all()
    expected = compiled(config)(made(config)[1], batch)
    actual = compiled(config)(made(config)[1], with_garbage(batch))
    real = batch.target_mask
    np.testing.assert_array_equal(actual[0].sequence[real], expected[0].sequence[real])
    for part in (lambda out: out[0].heatmaps, lambda out: out[0].scores, lambda out: out[1:]):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), part(actual), part(expected)))


def test_real_tokens_do_change_the_outputs(config):
    """What the tests above could not tell from a network that ignores its text."""
    batch = fake()
    text = batch.text_ids.copy()
    text[:, 0] = text[:, 0] % 40 + 5
    expected = compiled(config)(made(config)[1], batch)
    actual = compiled(config)(made(config)[1], batch._replace(text_ids=text))
    for a, b in ((actual[0].heatmaps, expected[0].heatmaps), (actual[0].scores, expected[0].scores)):
        assert np.abs(a - b).max() > 1e-3
    assert np.abs(actual[3].word_probabilities - expected[3].word_probabilities).max() > 1e-3


# The decoder


def test_the_decoder_does_not_see_what_comes_later(config):
    batch = fake()
    later = batch.target_ids.copy()
    later[:, 4] = later[:, 4] % 40 + 5
    expected = compiled(config)(made(config)[1], batch)[0].sequence
    actual = compiled(config)(made(config)[1], batch._replace(target_ids=later))[0].sequence
    np.testing.assert_array_equal(actual[:, :5], expected[:, :5])  # logits at 4 predict target 4
    assert (np.abs(actual - expected)[:, 5:].max((1, 2)) > 1e-3).all()


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
    for row, expected, length in zip(ids, best, lengths):
        np.testing.assert_array_equal(row[:length], expected[:length])
        assert (row[length:] == PAD_ID).all()
    return lengths


def test_decoding(config, monkeypatch):
    ends, plain = [], jax.lax.while_loop

    def loop(condition, body, state):
        state = plain(condition, body, state)
        ends.append(state[0])  # the position at which generate() stops
        return state

    monkeypatch.setattr(jax.lax, "while_loop", loop)
    length, batch, (_, params) = 12, fake(8), made(config)
    run = generating(config, length, ends)
    ids, stepwise, forced, (end,) = jax.device_get(run(params, batch))
    close(stepwise, forced, 2e-5)
    assert max(check_generated(ids, forced)) == end
    # With another output for the end of sequence, some sequences end early; take only those.
    eager = with_another_end(params, config)
    ids, _, forced, _ = jax.device_get(run(eager, batch))
    lengths = np.array(check_generated(ids, forced))
    rows = np.resize(np.flatnonzero(lengths < length), 8)
    assert len(set(lengths[rows])) > 1
    ids, stepwise, forced, (end,) = jax.device_get(run(eager, jax.tree.map(lambda x: x[rows], batch)))
    close(stepwise, forced, 1e-4)
    assert check_generated(ids, forced) == lengths[rows].tolist()
    assert end == max(lengths[rows]) < length


def with_another_end(params, config):
    """Parameters with a random and larger output for the end of sequence."""
    name = "embedding" if config.t5.tie_embeddings else "output"
    matrix = np.array(params[name])
    end = 4 * np.random.default_rng(1).standard_normal(16)
    matrix[(EOS_ID, slice(None)) if config.t5.tie_embeddings else (slice(None), EOS_ID)] = end
    return params | {name: matrix}
