"""A trained model, ready for use: any images and prompts in, feedback out, differentiable in the pixels.

critic = rahf.load("runs/demo")
prediction = critic(["cat.png", "dog.jpg"], "a photo of a pet")   # arrays
for feedback in critic.feedback(paths, prompts):                  # one object per image
    print(feedback.scores, feedback.misaligned_words)
ids, mask = critic.tokens("a photo of a pet")
gradient = jax.grad(lambda x: critic.scores(x, ids, mask)[:, 3].sum())(pixels)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rahf.config import Config
from rahf.core import labels, tree
from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.core.errors import ArgumentError, ImageError
from rahf.critic import feedback as feedback_lib
from rahf.critic import provenance
from rahf.critic.feedback import Feedback
from rahf.critic.network import Network
from rahf.critic.provenance import KnownPrediction, Provenance
from rahf.images import inputs
from rahf.nn import pixels as pixels_lib
from rahf.text import Tokenizer
from rahf.text import prompts as prompts_lib
from rahf.text.prompts import PromptWarning  # noqa: F401 - for callers

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Array, Bool, Float, Int

#: Largest batch that is chosen without being asked: bounds memory with large networks.
_DEFAULT_BATCH = 16


class Critic:
    """A network with its parameters, vocabulary and preprocessing.

    Attributes:
      config: of the run, with the compute dtype in use.
      params: nested dict of arrays, float32 (or bfloat16, of an export made so).
      network: its pure functions.
      tokenizer: of the prompts.
      name: of the run.
      step: of training at which the parameters were saved, None if unknown.
    """

    def __init__(
        self,
        config: Config,
        params: tree.Params,
        tokenizer: Tokenizer,
        name: str = "model",
        step: int | None = None,
        *,
        network: Network | None = None,
        describe: Callable[[Critic], Provenance] | None = None,
    ):
        """Puts the parts together; `load` reads them from a run directory or an exported file.

        Args:
          network: functions of the network; None: made from its Flax modules.
          describe: says what the model is when that is asked for first; None: found out from the parts.
        """
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.name, self.step, self._describe = name, step, describe
        if network is None:
            from rahf.critic import apply  # Flax; an exported file does without

            network = apply.network(config, tokenizer)
        self.network = network
        self._forward = network.forward and jax.jit(network.forward, static_argnames="generate")
        self._scores = jax.jit(network.scores)
        self._heatmaps = network.heatmaps and jax.jit(network.heatmaps)

    @property
    def graphdef(self) -> Any:
        """The static structure that belongs to `params`; None for an exported file."""
        return self.network.graphdef

    @functools.cached_property
    def provenance(self) -> Provenance:
        """What every prediction carries: model id, preprocessing hash, weight licence, reference quantiles."""
        return self._describe(self) if self._describe else provenance.of(self)

    @property
    def model_id(self) -> str:
        """Name, step, and a hash of what decides about the numbers: parameters, network, vocabulary."""
        return self.provenance.model_id

    def __repr__(self) -> str:
        size, side = tree.count(self.params) / 1e6, self.config.model.image_size
        known = f"{size:.1f}M parameters, {side} x {side} pixels, weights: {self.provenance.weight_licence}"
        return f"Critic({self.name!r}, step {self.step}, {known})"

    def __call__(
        self, images: Any, prompts: str | Sequence[str], batch_size: int | None = None, progress: bool | None = None
    ) -> KnownPrediction:
        """Predicts for one image or many of any sizes.

        Args:
          images: one or many: paths, encoded bytes, Pillow images, arrays [h,w,3] (uint8, or float in [0,1]).
            Each is resized to the network's square as in evaluation.
          prompts: one for all images, or one per image.
          batch_size: images per step; the last batch is filled up, so nothing is compiled for it. None: the
            power of two that holds all images, at most 16.
          progress: show a bar on stderr if that is a terminal; None: for more than 64 images.

        Returns:
          NumPy float32: `heatmaps` [N,S,S,2] at the network's side S, `scores` [N,4], `word_probabilities`
          [N,K] with K = `config.data.max_words`, 0 beyond the words of a prompt. An export of scores only
          gives None for the other two. The prediction knows its model: `.provenance`, `.percentiles`;
          comparing its scores with another model's warns with `rahf.critic.provenance.ModelMismatch`.

        Raises:
          rahf.images.ImageError: an image cannot be used; names it.
          ValueError, TypeError: no images, an empty prompt, another number of prompts than images.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        images, texts = self._given(images, prompts)
        prompts_lib.warn(texts)
        side, words = self.config.model.image_size, self.config.data.max_words
        full = self._forward is not None
        result = Prediction(
            np.empty((len(images), side, side, len(HEATMAPS)), np.float32) if full else None,
            np.empty((len(images), len(SCORES)), np.float32),
            np.empty((len(images), words), np.float32) if full else None,
        )
        for rows, _, found, _ in self._run(images, texts, batch_size, progress=progress):
            for whole, part in zip(result, found):
                if whole is not None:
                    whole[rows] = part
        return KnownPrediction(*result, self.provenance)

    def feedback(
        self,
        images: Any,
        prompts: str | Sequence[str],
        batch_size: int | None = None,
        progress: bool | None = None,
        generate: bool = False,
    ) -> list[Feedback]:
        """Predicts like `__call__`, and gives one object per image with everything by name.

        Args:
          generate: decide about words by generating the target sequence and aligning it with the prompt;
            otherwise by constrained scoring, a word being misaligned if its probability is above 0.5.

        Raises:
          ValueError: also if an exported file lacks what is asked for: it cannot generate, and one of scores
            only has no heatmaps and words.
        """
        images, texts = self._given(images, prompts)
        prompts_lib.warn(texts)
        return [made for _, made in self._feedback(images, texts, batch_size, generate, None, progress)]

    def iterate(
        self,
        images: Any,
        prompts: str | Sequence[str],
        batch_size: int | None = None,
        generate: bool = False,
        on_error: Callable[[int, ImageError], None] | None = None,
    ) -> Iterator[tuple[int, Feedback]]:
        """Like `feedback`, one at a time, so that long lists need not fit into memory.

        Args:
          on_error: called with the position of an image that cannot be used, which is then left out; None
            raises its error.

        Yields:
          Position in `images` and feedback, in order. Cut-off words are in `Feedback.notes`, not warned of.
        """
        images, texts = self._given(images, prompts)
        return self._feedback(images, texts, batch_size, generate, on_error)

    def tokens(self, prompts: str | Sequence[str]) -> tuple[Int[np.ndarray, "b L"], Bool[np.ndarray, "b L"]]:
        """Prompts → `text_ids` int32 [B,L] and `text_mask` bool [B,L] for `scores` and `heatmaps`.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        given = prompts_lib.prompt_list(prompts)
        texts = [prompts_lib.encode(prompt, self.config.data, self.tokenizer) for prompt in given]
        prompts_lib.warn(texts)
        return np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts])

    def scores(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Int[Array, "b L"],
        text_mask: Bool[Array, "b L"],
        params: tree.Params | None = None,
    ) -> Float[Array, "b 4"]:
        """The four scores as a pure JAX function, for `jit`, `grad` and `vmap`; differentiable in the pixels.

        Args:
          pixels: float [B,h,w,3] in [0,1], any size (resized inside, antialiased bilinear), or uint8. Without
            the batch axis, so is the result.
          text_ids, text_mask: of `tokens`; one row serves all images.
          params: other parameters of the same shapes, e.g. to pass them as an argument of your own `jit`
            instead of having them compiled in.

        Returns:
          float32 [B,4] in [0,1], order `rahf.core.batch.SCORES`, high = good.

        Raises:
          ImageError: another shape (channels first is named), or values that cannot be in [0,1]; values are
            looked at only outside of `jit`, `grad` and `vmap`.
        """
        params = self.params if params is None else params
        return pixels_lib.call(self._scores, params, pixels, text_ids, text_mask)

    def heatmaps(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Int[Array, "b L"],
        text_mask: Bool[Array, "b L"],
        params: tree.Params | None = None,
    ) -> Float[Array, "b s s 2"]:
        """Both heatmaps as a pure JAX function; arguments as in `scores`.

        Returns:
          float32 [B,S,S,2] in [0,1] at the network's side S, order `rahf.core.batch.HEATMAPS`, high = bad.
        """
        if self._heatmaps is None:
            raise ArgumentError(_ONLY_SCORES)
        params = self.params if params is None else params
        return pixels_lib.call(self._heatmaps, params, pixels, text_ids, text_mask)

    def reward(self, score: str | Mapping[str, float] = "overall") -> Callable[..., Array]:
        """A score, or a weighted sum of scores, as a pure function of (pixels, text_ids, text_mask, params=None).

        Args:
          score: a name of `rahf.core.batch.SCORES`, or weights by name.

        Returns:
          The function; it gives float32 [B] (or [] for one image), high = good, differentiable in the pixels.

        Raises:
          ValueError: an unknown score; suggests the nearest.
        """
        weights = labels.weights(score)

        def reward(pixels, text_ids, text_mask, params=None):
            return self.scores(pixels, text_ids, text_mask, params) @ weights

        return reward

    def _given(self, images: Any, prompts: Any) -> tuple[list[Any], list[prompts_lib.Text]]:
        images = inputs.image_list(images)
        known: dict[str, prompts_lib.Text] = {}
        texts = []
        for prompt in prompts_lib.prompt_list(prompts, len(images)):
            if prompt not in known:
                known[prompt] = prompts_lib.encode(prompt, self.config.data, self.tokenizer)
            texts.append(known[prompt])
        return images, texts

    def _feedback(self, images, texts, batch_size, generate, on_error, progress=None):
        if self._forward is None:
            raise ArgumentError(_ONLY_SCORES)
        if generate and self.graphdef is None:
            raise ArgumentError(
                "generate: an exported file decides about words by constrained scoring only; leave generate out, "
                "or load the run directory"
            )
        for rows, pictures, found, generated in self._run(
            images, texts, batch_size, generate, keep=True, on_error=on_error, progress=progress
        ):
            for at, (row, picture) in enumerate(zip(rows, pictures)):
                one = Prediction(*(field[at] for field in found))
                said = None if generated is None else self.tokenizer.decode(generated[at])
                yield row, feedback_lib.make(texts[row], picture, one, said, self.provenance)

    def _run(self, images, texts, batch_size, generate=False, keep=False, on_error=None, progress=None):
        """Yields positions, pictures, NumPy predictions and generated ids of one batch after the other."""
        size = _batch_size(batch_size, len(images))
        side = self.config.model.image_size
        for rows, pictures in inputs.decoded(images, side, size, keep, on_error, progress):
            # The last batch is filled with copies: equally large, and generation ends as early as without.
            order = [*range(len(rows)), *[0] * (size - len(rows))]
            arrays = [np.stack([getattr(texts[rows[i]], name) for i in order]) for name in _TEXT_FIELDS]
            squares = np.stack([pictures[i].square for i in order])
            if self._forward is None:
                output = Prediction(None, self._scores(self.params, squares, *arrays[:2]), None), None
            else:
                output = self._forward(self.params, squares, *arrays, generate=generate)
            found, generated = jax.tree.map(lambda x: np.array(x[: len(rows)]), jax.device_get(output))
            yield rows, pictures, found, generated


_ONLY_SCORES = (
    "this file was exported with --scores-only: it has no heatmaps and words; export the model again without it"
)
_TEXT_FIELDS = ("text_ids", "text_mask", "prompt_ids", "word_end")


def _batch_size(asked: int | None, count: int) -> int:
    if asked is None:
        return min(_DEFAULT_BATCH, 1 << (count - 1).bit_length())
    if asked < 1:
        raise ArgumentError(f"batch_size: expected at least 1, found {asked}")
    return asked
