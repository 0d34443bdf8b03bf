"""The editor of Augsal (spec 7.3): a part of a picture that a word names gets more contrast, brightness or colour.

    editor = Editor(rahf.diffusion.load("models/sd15"))
    result = editor("photo.jpg", "a cat on a sofa", saliency, EditOptions(property="contrast"))

The part is the word whose attention map agrees best with where people look. The picture is brought back over its least
noisy steps, edited there inside the part, and finished while the U-Net attends there to a token of its own. An edit
that changes any property of the part by more than two standard deviations of that property is made weaker and done
again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.core.errors import ArgumentError, NotFinite
from rahf.diffusion.latents import inversion
from rahf.diffusion.latents.edict import Coefficients
from rahf.diffusion.pipeline import Pipeline
from rahf.images.resize import resize
from rahf.nn import functional
from rahf.saliency.augsal import attention_maps, latent_edits, losses
from rahf.saliency.augsal.attention_maps import WordTokens
from rahf.saliency.augsal.properties import PROPERTIES, SALICON_STD, properties

Property = Literal["contrast", "brightness", "color"]
EDITS = ("contrast", "brightness", "color")

#: (pictures float32 [1,H,W,3], region float32 [1,H,W]) → properties float32 [1,6], in the order of `PROPERTIES`.
Measure = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class EditOptions:
    """What is changed, and how far.

    Attributes:
      property: "contrast" and "brightness" change the latents and insert an empty token; "color" inserts a colour word.
      strength: alpha at first: of latents, and of the inserted token's attention. Published: drawn from 0.02 to 0.2.
      word: the word to edit; None: the one whose attention map agrees best with the saliency.
      color: the colour word, or words.
      num_inference_steps: of the scheduler.
      attention_steps: least noisy steps that are inverted, and whose attention is averaged.
      finish_steps: steps from the edit to the picture.
      iterations: corrections of each step of the inversion.
      shrink: factor of the strength after an edit that goes too far.
      max_rounds: most edits; after them the strength is 0.
      limit: standard deviations that a property may change by.
    """

    property: Property = "contrast"
    strength: float = 0.1
    word: str | None = None
    color: str = "red"
    num_inference_steps: int = 50
    attention_steps: int = 6
    finish_steps: int = 2
    iterations: int = 8
    shrink: float = 0.9
    max_rounds: int = 40
    limit: float = 2.0

    def __post_init__(self):
        """Raises ArgumentError for numbers that make no sense; names them."""
        if self.property not in EDITS:
            raise ArgumentError(f"property: expected {', '.join(EDITS)}, found {self.property!r}")
        for name, low, high in (("strength", 0, 1), ("shrink", 0, 1), ("limit", 0, math.inf)):
            value = getattr(self, name)
            if not (math.isfinite(value) and low < value <= high):
                bound = f" up to {high}" if high < math.inf else ""
                raise ArgumentError(f"{name}: expected a number above {low}{bound}, found {value}")
        if self.shrink == 1:
            raise ArgumentError("shrink: expected a number below 1, by which an edit that goes too far gets weaker")
        if self.max_rounds < 1:
            raise ArgumentError(f"max_rounds: expected at least 1, found {self.max_rounds}")
        if not 1 <= self.finish_steps <= self.attention_steps <= self.num_inference_steps:
            raise ArgumentError(
                "expected 1 <= finish_steps <= attention_steps <= num_inference_steps, found "
                f"{self.finish_steps}, {self.attention_steps}, {self.num_inference_steps}"
            )


class EditResult(NamedTuple):
    """An edited picture.

    Attributes:
      image: float32 [H,W,3] in [0,1].
      before: the same with strength 0: the original as inversion and autoencoder show it.
      mask: float32 [h,w], 0 or 1, on the grid of the latents: what was edited.
      word: whose attention chose it; attention: float32 [g1,g2], its map.
      strength: of the edit that was kept; 0: none was weak enough, and `image` is `before`.
      rounds: edits that were tried.
      properties_before, properties_after: of the edited part, by the names of `PROPERTIES`.
      error: largest error of a step of the inversion; NaN: not measured.
    """

    image: np.ndarray
    before: np.ndarray
    mask: np.ndarray
    word: str
    attention: np.ndarray
    strength: float
    rounds: int
    properties_before: dict[str, float]
    properties_after: dict[str, float]
    error: float


class Editor:
    """Edits pictures, one at a time; programs are compiled once for each size."""

    def __init__(
        self,
        pipe: Pipeline,
        gamma: Any = None,
        std: Mapping[str, float] = SALICON_STD,
        measure: Measure | None = None,
    ):
        """Args:
        pipe: Stable Diffusion 1 or 2; not of inpainting.
        gamma: float [c], brightness in latents, of `fit_gamma`; None: `latent_edits.known_gamma`.
        std: standard deviation of each property over pictures.
        measure: of properties; None: they are computed from the pixels. A trained Augsal reads them out instead.

        Raises:
          ArgumentError: a gamma for other latents, or a property without a standard deviation.
        """
        gamma = np.asarray(latent_edits.known_gamma(pipe.config.model) if gamma is None else gamma, np.float32)
        if gamma.shape != (pipe.channels,) or not np.isfinite(gamma).all():
            raise ArgumentError(
                f"gamma: expected {pipe.channels} numbers, one per channel of the latents, found shape {gamma.shape}; "
                "rahf.saliency.augsal.editor.fit_gamma finds them"
            )
        missing = [name for name in PROPERTIES if not std.get(name, 0) > 0]
        if missing:
            raise ArgumentError(f"std: expected a number above 0 for {', '.join(missing)}")
        self.pipe, self.gamma, self.std = pipe, gamma, {name: float(std[name]) for name in PROPERTIES}
        self.measure = jax.jit(properties) if measure is None else measure

    def __call__(self, picture: Any, prompt: str, saliency: Any, options: EditOptions = EditOptions()) -> EditResult:
        """Edits one picture.

        Args:
          picture: [H,W,3] float in [0,1] or uint8, sides multiples of the latents' cells.
          prompt: what it shows; its words are the parts that can be chosen.
          saliency: [h,w] at least 0, where people look; of the picture's aspect, any size and scale.
          options: see there.

        Raises:
          ArgumentError: a prompt without words or without `options.word`; an all-zero saliency, or one of another
            aspect; a pipeline whose steps cannot be undone.
          ImageError: pixels outside of [0,1].
          NotFinite: an edit leads to NaN or infinity.
        """
        pipe = self.pipe
        if np.ndim(picture) != 3:
            raise ArgumentError(f"picture: expected one, [H,W,3], found shape {np.shape(picture)}; edit one at a time")
        steps, count = options.num_inference_steps, options.attention_steps
        back = inversion.invert(
            pipe, picture, prompt, num_inference_steps=steps, start=steps - count, iterations=options.iterations
        )
        height, width = (side * pipe.scale_factor for side in back.latents.shape[1:3])
        words = attention_maps.word_tokens(pipe.tokenizer, prompt, pipe.config.model.text_encoder.positions)
        words = _wanted(words, options.word)
        plan = inversion.coefficients(pipe.scheduler, steps, steps - count)
        maps = self._attention(back, prompt, plan, (height, width))
        grid = maps.shape[1:]
        looked = _on_grid(saliency, (height, width), grid)
        per_word = attention_maps.of_words(maps, words)
        best, product = (np.asarray(x)[0] for x in losses.chosen_map(per_word[None], looked[None]))
        attention, mask = masked(product, back.latents.shape[1:3])
        inserted, marked = self._states(prompt, words[int(best)], options, (height, width))

        late = inversion.coefficients(pipe.scheduler, steps, steps - options.finish_steps)
        start = back.trajectory[count - options.finish_steps]
        finish = self._finish(inserted, late, options.property)
        region = jnp.asarray(np.kron(mask, np.ones((pipe.scale_factor,) * 2, np.float32)))[None]

        def at(strength: float) -> tuple[np.ndarray, np.ndarray]:
            latents = finish(pipe.params, marked, start, mask[None], attention[None], np.float32(strength), self.gamma)
            image = pipe.decode(latents)
            if not np.isfinite(np.asarray(latents)).all():
                raise NotFinite(
                    f"the edit of {options.property} with strength {strength:.3g} leads to NaN or infinity; "
                    "take a lower strength"
                )
            return np.asarray(image)[0], np.asarray(self.measure(image, region))[0]

        before, original = at(0.0)
        std = np.array([self.std[name] for name in PROPERTIES])
        image, values, strength, rounds = bounded(
            at, (before, original), std, options.strength, options.shrink, options.max_rounds, options.limit
        )
        named = lambda row: {name: float(value) for name, value in zip(PROPERTIES, row)}  # noqa: E731
        return EditResult(
            image, before, mask, words[int(best)].word, per_word[int(best)], strength, rounds,
            named(original), named(values), float(np.asarray(back.error).max()),
        )  # fmt: skip

    def _attention(self, back: inversion.Inversion, prompt: str, plan: Any, size: tuple[int, int]) -> np.ndarray:
        """Attention to each token, [L,g1,g2]."""
        pipe = self.pipe
        grid = attention_maps.attention_grid(pipe.config.model, back.latents.shape[1:3])
        conditions, _ = pipe.conditions(pipe.tokens(prompt), pipe.tokens(""), size)
        key = ("augsal attention", pipe.scheduler, tuple(plan.timestep.tolist()), grid)
        if key not in pipe.compiled:
            graphdef = pipe.graphdef
            pipe.compiled[key] = jax.jit(
                lambda params, trajectory, conditions: attention_maps.collect(
                    functional.merge(graphdef, params), trajectory, plan.timestep, conditions, grid
                )
            )
        return np.asarray(pipe.compiled[key](pipe.params, back.trajectory[:-1], conditions))[0]

    def _states(self, prompt: str, word: WordTokens, options: EditOptions, size: tuple[int, int]) -> tuple[int, Any]:
        """The number of inserted tokens, and the prompt's conditions with them.

        The empty token is what the text tower makes of the first place behind an empty prompt. A colour word is read in
        its place before the target word; the words behind it keep what they were.
        """
        pipe = self.pipe
        conditions, empty = pipe.conditions(pipe.tokens(prompt), pipe.tokens(""), size)
        if options.property != "color":
            return 1, attention_maps.with_tokens(conditions, empty.text[:, 1:2])
        tokens = pipe.tokenizer.encode(options.color)
        stop = word.start + len(tokens)
        if not tokens or stop > pipe.config.model.text_encoder.positions - 1:
            raise ArgumentError(
                f"color {options.color!r}: has {len(tokens)} tokens, which do not fit before {word.word!r}; give a "
                "colour word, and a shorter prompt"
            )
        coloured, _ = pipe.conditions(pipe.tokens(f"{prompt[: word.offset]} {options.color}"), pipe.tokens(""), size)
        return len(tokens), attention_maps.with_tokens(conditions, coloured.text[:, word.start : stop])

    def _finish(self, inserted: int, late: Coefficients, kind: Property) -> Callable[..., Array]:
        """The program that edits latents and finishes the picture."""
        pipe = self.pipe
        key = ("augsal finish", pipe.scheduler, tuple(late.timestep.tolist()), inserted, kind)
        if key in pipe.compiled:
            return pipe.compiled[key]
        graphdef = pipe.graphdef

        def finish(params, conditions, latents, mask, attention, strength, gamma):
            model = functional.merge(graphdef, params)
            if kind == "brightness":
                latents = latent_edits.brightness(latents, mask, strength, gamma)
            elif kind == "contrast":
                latents = latent_edits.contrast(latents, mask, strength, gamma)
            injector = attention_maps.Injector(attention * strength, inserted)
            network = lambda cond, z, t: model(z, t, cond, observer=injector)  # noqa: E731
            return inversion.sample(network, late, conditions, latents)

        pipe.compiled[key] = jax.jit(finish)
        return pipe.compiled[key]


def masked(
    product: Float[np.ndarray, "g1 g2"], latents: tuple[int, int]
) -> tuple[Float[np.ndarray, "g1 g2"], Float[np.ndarray, "h w"]]:
    """The saliency product of the chosen word → the map that is injected, and the mask of the latents.

    Values up to the mean are dropped, the others divided by the largest. The mask is where this map, brought to the
    latents' grid bilinearly, is above a third of its largest value.

    Args:
      product: ``C_i* S``, at least 0.
      latents: rows and columns.

    Returns:
      The map in [0,1], to be multiplied by the strength; the mask, 0 or 1.

    Raises:
      ArgumentError: the product is the same everywhere, so that nothing stands out.
    """
    product = np.asarray(product, np.float32)
    kept = np.where(product > product.mean(), product, 0)
    if not kept.max() > 0:
        raise ArgumentError(
            "attention and saliency choose no part of the picture: their product is the same everywhere. Name a word "
            "of the prompt with `word`, or give another saliency"
        )
    kept = kept / kept.max()
    large = resize(kept, latents)
    return kept, (large > large.max() / 3).astype(np.float32)


def bounded(
    edit: Callable[[float], tuple[Any, np.ndarray]],
    unchanged: tuple[Any, np.ndarray],
    std: np.ndarray,
    strength: float,
    shrink: float,
    max_rounds: int,
    limit: float = 2.0,
) -> tuple[Any, np.ndarray, float, int]:
    """Edits with less and less strength until every property is within `limit` standard deviations of the original's.

    Args:
      edit: strength → picture and its properties [6].
      unchanged: those of strength 0.
      std: [6].
      strength, shrink, max_rounds, limit: as of `EditOptions`.

    Returns:
      Picture, properties and strength of the first edit that is within, and the number of edits tried. After
      `max_rounds` edits that are not (or whose properties are NaN): `unchanged`, and 0.
    """
    for number in range(max_rounds):
        tried = strength * shrink**number
        picture, values = edit(tried)
        if (np.abs(values - unchanged[1]) <= limit * std).all():
            return picture, values, tried, number + 1
    return (*unchanged, 0.0, max_rounds)


def fit_gamma(pipe: Pipeline, pictures: Any, batch_size: int = 8) -> latent_edits.LatentColors:
    """The pipeline's `LatentColors` from pictures [B,H,W,3] in [0,1], some hundreds for a published autoencoder.

    Latents are the encoder's, colours what the decoder makes of them.

    Raises:
      ArgumentError: as of `latent_edits.fit_colors`. ImageError: pixels outside of [0,1].
    """
    latents, shown = [], []
    for first in range(0, len(pictures), batch_size):
        part = pipe.encode(pictures[first : first + batch_size])
        latents.append(np.asarray(part))
        shown.append(np.asarray(pipe.decode(part)))
    return latent_edits.fit_colors(np.concatenate(latents), np.concatenate(shown))


def _wanted(words: list[WordTokens], word: str | None) -> list[WordTokens]:
    if word is None:
        return words
    chosen = [one for one in words if one.word.lower() == word.lower()]
    if not chosen:
        raise ArgumentError(f"word {word!r}: the prompt has the words {', '.join(one.word for one in words)}")
    return chosen


def _on_grid(saliency: Any, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """A saliency map, checked, at the attention's size."""
    saliency = np.asarray(saliency, np.float32)
    if saliency.ndim != 2 or not np.isfinite(saliency).all() or saliency.min(initial=0) < 0:
        raise ArgumentError(f"saliency: expected a map [h,w] of finite values of at least 0, found {saliency.shape}")
    if not saliency.max(initial=0) > 0:
        raise ArgumentError("saliency: the map is 0 everywhere: nobody looks anywhere; give another one")
    rows, columns = saliency.shape
    if abs(rows * size[1] / columns - size[0]) >= 1 + size[0] / rows:
        raise ArgumentError(
            f"saliency: a map of another aspect: {columns} x {rows}, the picture is {size[1]} x {size[0]}"
        )
    return np.maximum(resize(saliency, grid), 0)
