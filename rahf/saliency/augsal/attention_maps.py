"""Which words of a prompt a frozen U-Net attends to at each place, and putting a map of one's own in its place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.config import StableDiffusionConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.networks.unet import Conditions, Observer
from rahf.text import ClipTokenizer
from rahf.text.words import pieces, split_words


class WordTokens(NamedTuple):
    """A word of a prompt.

    Attributes:
      word: as it is written; offset: of its first character in the prompt.
      start, stop: its tokens of the text tower: from `start` on, up to `stop`, which is another's.
    """

    word: str
    offset: int
    start: int
    stop: int


def word_tokens(tokenizer: ClipTokenizer, prompt: str, length: int) -> list[WordTokens]:
    """The words of a prompt with their tokens. Words that are cut off after `length` tokens are left out.

    Raises:
      ArgumentError: no word is left.
    """
    listed, before = [], ""
    for piece in pieces(prompt, split_words(prompt)):
        offset, start = len(before), 1 + len(tokenizer.encode(before))
        before += piece.text
        stop = 1 + len(tokenizer.encode(before))
        if piece.word is not None and start < stop <= length - 1:
            listed.append(WordTokens(piece.text, offset, start, stop))
    if not listed:
        raise ArgumentError(f"prompt {prompt!r}: has no word to attend to; say what the picture shows")
    return listed


def attention_grid(config: StableDiffusionConfig, latents: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the attention that is read: a quarter of the latents' side (16 x 16 of 512 pixels), or the
    nearest at which the U-Net attends to the text.

    Raises:
      ArgumentError: it attends nowhere on its way down and up.
    """
    levels = [level for level, attends in enumerate(config.unet.cross_attention) if attends]
    if not levels:
        raise ArgumentError("this U-Net does not attend to the text on its way down or up: no attention maps")
    level = min(levels, key=lambda level: (abs(level - 2), level))
    rows, columns = latents
    for _ in range(level):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


class _Reader(Observer):
    attends = True

    def __init__(self, grid: tuple[int, int]):
        self.grid, self.maps = grid, []

    def attention(self, place: str, grid: tuple[int, int], probabilities: Array) -> Array:
        if place != "mid" and grid == self.grid:
            self.maps.append(probabilities.mean(1))
        return probabilities


def collect(
    model: StableDiffusion,
    trajectory: Float[Array, "t b h w c"],
    timesteps: Any,
    conditions: Conditions,
    grid: tuple[int, int],
) -> Float[Array, "b l g1 g2"]:
    """Attention of every place to every token, averaged over heads, times and blocks of the way down and up; pure.

    Args:
      trajectory: float32 [T,B,h,w,c], latents at each time, whose timesteps are int32 [T].
      grid: of `attention_grid`.

    Returns:
      float32 [B,L,rows,columns] in [0,1]; sums over tokens are 1.
    """
    b = trajectory.shape[1]

    def at(time):
        latents, timestep = time
        reader = _Reader(grid)
        model(latents, jnp.broadcast_to(timestep, (b,)), conditions, observer=reader)
        return sum(reader.maps) / len(reader.maps)

    averaged = jax.lax.map(at, (trajectory, jnp.asarray(timesteps))).mean(0)
    return jnp.moveaxis(averaged, -1, 1).reshape(b, -1, *grid)


def of_words(maps: Any, words: list[WordTokens]) -> Float[np.ndarray, "k g1 g2"]:
    """Maps of one picture, [L,g1,g2], averaged over the tokens of each word."""
    maps = np.asarray(maps, np.float32)
    return np.stack([maps[word.start : word.stop].mean(0) for word in words])


class Injector(Observer):
    """Gives the last `count` tokens of the text the attention of a map, and the other tokens what is left of it.

    Where the map is 0 the attention is that without these tokens.
    """

    attends = True

    def __init__(self, attention: Float[Array, "b g1 g2"], count: int):
        """Args: a map in [0,1], brought to every grid bilinearly; how many tokens share it."""
        self.map, self.count = attention, count

    def attention(self, place: str, grid: tuple[int, int], probabilities: Array) -> Array:
        share = jax.image.resize(self.map, (len(self.map), *grid), "bilinear").reshape(len(self.map), 1, -1, 1)
        others = probabilities[..., : -self.count]
        others = others / jnp.maximum(others.sum(-1, keepdims=True), 1e-12) * (1 - share)
        inserted = jnp.broadcast_to(share / self.count, (*others.shape[:-1], self.count))
        return jnp.concatenate([others, inserted], -1)


def with_tokens(conditions: Conditions, states: Float[Array, "b e d"]) -> Conditions:
    """Conditions with more tokens behind the text's. Attention to the text knows no order, so they stand as well behind
    all words as before the one they belong to."""
    return conditions._replace(text=jnp.concatenate([conditions.text, states.astype(conditions.text.dtype)], 1))
