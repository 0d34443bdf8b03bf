"""The tag head: which words of the prompt can be seen in the image, told by the image tower alone.

It serves learning only. Whether a word is true of a picture can be learnt only once the tower tells colours and
shapes apart, and the labels teach that slowly: one word in ten is misaligned, and nothing says what is shown in its
place. Naming what is shown teaches it directly. Towers pretrained on captions bring it along; one that starts
at random learns it so from the dataset's own prompts.

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

#: Share of images that show a word, before training: about that of a word among those of a batch.
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
    """`said` [B,V]: pieces of the prompt's words; `shown` [B,V]: of those that are aligned."""

    said: Bool[Array, "b v"]
    shown: Bool[Array, "b v"]


def targets(batch: Batch, vocab_size: int) -> Tags:
    """The pieces of each prompt's labelled words, and of those among them that the image shows."""
    pieces = jnp.arange(batch.prompt_ids.shape[1])
    ends = jnp.where(batch.word_end >= 0, batch.word_end, batch.prompt_ids.shape[1])
    word = (ends[:, None, :] < pieces[None, :, None]).sum(-1)  # of each piece; the words' ends ascend
    known = word < batch.word_mask.shape[1]
    word = jnp.minimum(word, batch.word_mask.shape[1] - 1)
    known &= jnp.take_along_axis(batch.word_mask & (batch.word_end >= 0), word, 1)
    aligned = jnp.take_along_axis(batch.word_labels, word, 1) == 1
    examples = batch.prompt_ids.shape[0]
    rows, none = jnp.arange(examples)[:, None], jnp.zeros((examples, vocab_size), bool)
    return Tags(none.at[rows, batch.prompt_ids].max(known), none.at[rows, batch.prompt_ids].max(known & aligned))


def values(logits: Float[Array, "b v"], tags: Tags) -> Float[Array, "b v"]:
    """Cross-entropy of each piece for each image. A word of another prompt counts as not shown, as it mostly is."""
    return optax.sigmoid_binary_cross_entropy(logits, tags.shown.astype(jnp.float32))


def vocabulary(tags: Tags) -> Int[Array, " v"]:
    """1 for the pieces that any prompt of the batch says: the others would only be learnt to be rare."""
    return tags.said.any(0).astype(jnp.int32)
