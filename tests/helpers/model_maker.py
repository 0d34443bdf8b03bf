"""Tiny networks and padded batches, shared by tests of the network and of its training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import CriticConfig, HeatmapHeadConfig, LossConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.core import batch as batch_lib
from rahf.core.batch import Batch
from rahf.critic import apply, losses
from rahf.critic.networks import build
from rahf.nn import functional

#: As published, but small.
PLAIN = CriticConfig(
    image_size=16,
    vit=ViTConfig(patch_size=8, width=16, depth=1, heads=2, mlp_width=16),
    t5=T5Config(48, 16, head_width=8, heads=2, mlp_width=16, encoder_layers=2, decoder_layers=2),
    heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),
    score_head=ScoreHeadConfig(conv_widths=(8,), dense_widths=(8,)),
)
#: Every option otherwise.
OTHER = CriticConfig(
    image_size=16,
    vit=dataclasses.replace(
        PLAIN.vit,
        patch_size=4,
        class_token=True,
        stem=(4,),
        stem_blocks=1,
        activation="gelu-tanh",
        layer_scale=True,
    ),
    t5=dataclasses.replace(PLAIN.t5, ff="relu", tie_embeddings=True, image_relative_bias=False),
    heatmap_head=HeatmapHeadConfig(
        conv_widths=(8,), up_widths=(8, 4), norm="rms", residual=True, relu_before_norm=True
    ),
    score_head=ScoreHeadConfig(conv_widths=(8, 8), padding="VALID", pool=1, dense_widths=(), norm="rms"),
    decoder_sees="text",
)
#: Next to nothing, for what compiles gradients.
SMALLEST = dataclasses.replace(
    PLAIN,
    t5=dataclasses.replace(PLAIN.t5, encoder_layers=1, decoder_layers=1),
    heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=(8,)),
    score_head=ScoreHeadConfig(conv_widths=(), dense_widths=(8,)),
)
BOTH = {"plain": PLAIN, "other": OTHER}
#: The paper's other variant.
AUGMENTED = dataclasses.replace(
    PLAIN, variant="augmented-prompt", task_ids=((5, 6), (7,), (8, 9, 10), (11, 6), (12,), (13, 14))
)
SUFFIX_ID = 4


@functools.cache
def made(config: CriticConfig):
    """Structure and parameters, all of them random: heads and norms start almost constant."""
    graphdef, _ = functional.abstract(build.build(config))
    stream = np.random.default_rng(1)
    flat = functional.flatten(functional.init(build.build(config), 0))
    noisy = {k: np.asarray(v) + 0.2 * stream.standard_normal(v.shape, np.float32) for k, v in flat.items()}
    return graphdef, functional.unflatten(noisy)


@functools.cache
def compiled(config: CriticConfig):
    """(params, batch, key=None) → logits, loss, its parts and the prediction."""
    graphdef, _ = made(config)

    def run(params, batch, key=None):
        model = functional.merge(graphdef, params)
        logits = model(batch, key)
        loss, parts = losses.total(LossConfig(), logits, batch)
        return logits, loss, parts, apply.predict(model, batch, SUFFIX_ID)

    return jax.jit(run)


def generating(config, length, watched=()):
    """(params, batch) → generated ids, logits step by step with a cache, logits of teacher forcing on them.

    Also what a test has put into `watched` while the network was traced.
    """
    graphdef, _ = made(config)

    def run(params, batch):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        ids = model.generate(fused, length)
        inputs = model.embed(jnp.pad(ids[:, :-1], ((0, 0), (1, 0))))

        def one(cache, position):
            x = jax.lax.dynamic_slice_in_dim(inputs, position, 1, 1)
            hidden, cache = model.decoder.step(x, position, cache, fused.memory_mask)
            return cache, model.vocabulary_logits(hidden)[:, 0]

        cache = model.decoder.start(fused.memory, length)
        _, stepwise = jax.lax.scan(one, cache, jnp.arange(length))
        return ids, stepwise.transpose(1, 0, 2), model.sequence_logits(fused, ids), list(watched)

    return jax.jit(run)


@functools.cache
def fake(batch_size: int = 3) -> Batch:
    """A batch for the tiny networks."""
    return batch_lib.fake(batch_size, 16, text_length=9, target_length=11, max_words=5, vocab_size=48, seed=1)


def padded(batch: Batch, text: int = 4, target: int = 3, words: int = 2, examples: int = 2) -> Batch:
    """The batch with longer sequences, places for more words, and filling examples."""
    longer = dict(text_ids=text, text_mask=text, target_ids=target, target_mask=target, prompt_ids=target)
    longer |= dict(word_end=words, word_labels=words, word_mask=words)
    fill = dict(word_end=-1, index=-1)

    def pad(name, value):
        widths = [(0, examples)] + [(0, 0)] * (value.ndim - 1)
        if name in longer:
            widths[1] = (0, longer[name])
        return np.pad(value, widths, constant_values=fill.get(name, 0))

    return Batch(**{name: pad(name, value) for name, value in batch._asdict().items()})


def with_garbage(batch: Batch) -> Batch:
    """The batch with other values wherever a mask says that they do not count."""
    stream = np.random.default_rng(9)

    def fill(values, mask, low, high):
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        return np.where(mask, values, stream.integers(low, high, values.shape)).astype(values.dtype)

    return batch._replace(
        image=fill(batch.image, batch.example_mask, 0, 256),
        text_ids=fill(batch.text_ids, batch.text_mask, 2, 48),
        target_ids=fill(batch.target_ids, batch.target_mask, 2, 48),
        prompt_ids=fill(batch.prompt_ids, batch.prompt_ids != 0, 2, 48),
        word_labels=fill(batch.word_labels, batch.word_mask, 0, 2),
        heatmaps=fill(batch.heatmaps, batch.example_mask, 0, 256),
        scores=np.where(batch.score_mask, batch.scores, np.float32(np.nan)),
        index=fill(batch.index, batch.example_mask, 5, 9),
    )
