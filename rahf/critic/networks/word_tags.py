"""The tag head: predicts from the image tower alone which words of the prompt the image shows.

It is used in training only. A network can judge whether a word is true of a picture only after its image tower has
learnt to tell colours and shapes apart. The labels teach that slowly: one word in ten is misaligned, and no label names
what the image shows instead. Naming what is shown teaches it directly. Towers pretrained on captions have learnt it
already; a tower that starts at random learns it from the dataset's own prompts.

Words as labels of whole images: Joulin et al. 2016 ("Learning visual features from large weakly supervised
data"); Huang et al. 2024 (SuperClass). Log-sum-exp over places: Pinheiro and Collobert 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.core.batch import Batch
from rahf.nn import gradients, layers

#: Logit before training of the share of images that show a word: about that of a word among those of a batch.
_PRIOR_LOGIT = -3.0


class TagHead(nnx.Module):
    """A logit per place and vocabulary piece, then a smooth maximum over places."""

    def __init__(self, width: int, vocab_size: int, *, dtype: jnp.dtype):
        self.kernel = layers.parameter(width, vocab_size, std=width**-0.5)
        self.bias = layers.parameter(vocab_size, fill=_PRIOR_LOGIT)
        self.dtype = dtype

    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b v"]:
        """Logits that the image shows each piece, float32: log mean exp over the tokens."""
        logits = gradients.product(tokens, self.kernel[...].astype(self.dtype), out=jnp.float32)
        return jax.nn.logsumexp(logits, 1) - jnp.log(logits.shape[1]) + self.bias[...]


class Tags(NamedTuple):
    """Targets of the tag head, one row per image."""

    in_prompt: Bool[Array, "b v"]  # pieces of the prompt's labelled words
    shown: Bool[Array, "b v"]  # pieces of those words that are aligned


def tag_targets(batch: Batch, vocab_size: int) -> Tags:
    """Which pieces the labelled words of each prompt have, and which of them belong to words that the image shows."""
    pieces = jnp.arange(batch.prompt_ids.shape[1])
    ends = jnp.where(batch.word_end >= 0, batch.word_end, batch.prompt_ids.shape[1])
    word = (ends[:, None, :] < pieces[None, :, None]).sum(-1)  # number of each piece's word; ends ascend
    labelled = word < batch.word_mask.shape[1]
    word = jnp.minimum(word, batch.word_mask.shape[1] - 1)
    labelled &= jnp.take_along_axis(batch.word_mask & (batch.word_end >= 0), word, 1)
    aligned = jnp.take_along_axis(batch.word_labels, word, 1) == 1
    examples = batch.prompt_ids.shape[0]
    places = jnp.zeros((examples, vocab_size), bool).at[jnp.arange(examples)[:, None], batch.prompt_ids]
    return Tags(in_prompt=places.max(labelled), shown=places.max(labelled & aligned))


def tag_losses(logits: Float[Array, "b v"], tags: Tags) -> Float[Array, "b v"]:
    """Cross-entropy of each piece for each image. Words of other prompts count as not shown, which is mostly true."""
    return optax.sigmoid_binary_cross_entropy(logits, tags.shown.astype(jnp.float32))


def pieces_in_prompts(tags: Tags) -> Int[Array, " v"]:
    """1 for pieces that any prompt of the batch has; from the others the head would learn only that they are rare."""
    return tags.in_prompt.any(0).astype(jnp.int32)
