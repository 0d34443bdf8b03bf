"""A trained model, ready for use: any images and prompts in, feedback out, differentiable in the pixels.

    critic = rahf.load("runs/demo")
    prediction = critic(["cat.png", "dog.jpg"], "a photo of a pet")   # arrays
    for feedback in critic.feedback(paths, prompts):                  # one object per image
        print(feedback.scores, feedback.misaligned_words)
    ids, mask = critic.tokens("a photo of a pet")
    gradient = jax.grad(lambda x: critic.scores(x, ids, mask)[:, 3].sum())(pixels)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rahf import config as config_lib
from rahf import feedback as feedback_lib
from rahf import inputs, pure
from rahf.batch import HEATMAPS, SCORES, Prediction
from rahf.config import Config
from rahf.feedback import Feedback
from rahf.images import ImageError
from rahf.inputs import PromptWarning  # noqa: F401 - for callers
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.text import Tokenizer

#: Largest batch that is chosen without being asked: bounds memory with large networks.
_DEFAULT_BATCH = 16


class Critic:
    """A network with its parameters, vocabulary and preprocessing.

    Attributes:
      config: of the run, with the compute dtype in use.
      params: nested dict of float32 arrays.
      graphdef: the static structure that belongs to `params`.
      tokenizer: of the prompts.
      name: of the run.
      step: of training at which the parameters were saved, None if unknown.
    """

    def __init__(
        self,
        config: Config,
        params: functional.Params,
        tokenizer: Tokenizer,
        name: str = "model",
        step: int | None = None,
    ):
        """Puts the parts together; `load` reads them from a run directory."""
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.name, self.step = name, step
        self.graphdef, _ = functional.abstract(model_lib.build(config.model))
        suffix, length = tokenizer.suffix_ids[0], config.data.max_target_tokens
        forward = functools.partial(pure.forward, self.graphdef, suffix, length)
        self._forward = jax.jit(forward, static_argnames="generate")
        self._scores = jax.jit(functools.partial(pure.scores, self.graphdef))
        self._heatmaps = jax.jit(functools.partial(pure.heatmaps, self.graphdef))

    @functools.cached_property
    def model_id(self) -> str:
        """Name, step, and a hash of what decides about the numbers: parameters, network, vocabulary."""
        # In which precision it computes is left out: the model is the same.
        model = dataclasses.replace(self.config.model, compute_dtype="float32")
        digest = hashlib.sha256(repr(model).encode() + self.tokenizer.model)
        for path, leaf in functional.flatten(self.params).items():
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(leaf))
        step = [] if self.step is None else [str(self.step)]
        return "-".join([self.name, *step, digest.hexdigest()[:12]])

    def __repr__(self) -> str:
        size = functional.count(self.params) / 1e6
        side = self.config.model.image_size
        return f"Critic({self.name!r}, step {self.step}, {size:.1f}M parameters, {side} x {side} pixels)"

    def __call__(
        self, images: Any, prompts: str | Sequence[str], batch_size: int | None = None, progress: bool = False
    ) -> Prediction:
        """Predicts for one image or many of any sizes.

        Args:
          images: one or many: paths, encoded bytes, Pillow images, arrays [h,w,3] (uint8, or float in [0,1]).
            Each is resized to the network's square as in evaluation.
          prompts: one for all images, or one per image.
          batch_size: images per step; the last batch is filled up, so nothing is compiled for it. None: the
            power of two that holds all images, at most 16.
          progress: show a bar on stderr.

        Returns:
          NumPy float32: `heatmaps` [N,S,S,2] at the network's side S, `scores` [N,4], `word_probabilities`
          [N,K] with K = `config.data.max_words`, 0 beyond the words of a prompt.

        Raises:
          rahf.images.ImageError: an image cannot be used; names it.
          ValueError, TypeError: no images, an empty prompt, another number of prompts than images.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        images, texts = self._given(images, prompts)
        inputs.warn(texts)
        side, words = self.config.model.image_size, self.config.data.max_words
        result = Prediction(
            np.empty((len(images), side, side, len(HEATMAPS)), np.float32),
            np.empty((len(images), len(SCORES)), np.float32),
            np.empty((len(images), words), np.float32),
        )
        for rows, _, found, _ in self._run(images, texts, batch_size, progress=progress):
            for whole, part in zip(result, found):
                whole[rows] = part
        return result

    def feedback(
        self,
        images: Any,
        prompts: str | Sequence[str],
        batch_size: int | None = None,
        progress: bool = False,
        generate: bool = False,
    ) -> list[Feedback]:
        """Predicts like `__call__`, and gives one object per image with everything by name.

        Args:
          generate: decide about words by generating the target sequence and aligning it with the prompt;
            otherwise by constrained scoring, a word being misaligned if its probability is above 0.5.
        """
        images, texts = self._given(images, prompts)
        inputs.warn(texts)
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
        given = inputs.prompt_list([prompts] if isinstance(prompts, str) else prompts, None)
        texts = [inputs.encode(prompt, self.config.data, self.tokenizer) for prompt in given]
        inputs.warn(texts)
        return np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts])

    def scores(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Int[Array, "b L"],
        text_mask: Bool[Array, "b L"],
        params: functional.Params | None = None,
    ) -> Float[Array, "b 4"]:
        """The four scores as a pure JAX function, for `jit`, `grad` and `vmap`; differentiable in the pixels.

        Args:
          pixels: float [B,h,w,3] in [0,1], any size (resized inside, antialiased bilinear), or uint8. Without
            the batch axis, so is the result.
          text_ids, text_mask: of `tokens`; one row serves all images.
          params: other parameters of the same shapes, e.g. to pass them as an argument of your own `jit`
            instead of having them compiled in.

        Returns:
          float32 [B,4] in [0,1], order `rahf.batch.SCORES`, high = good.

        Raises:
          ImageError: another shape (channels first is named), or values that cannot be in [0,1]; values are
            looked at only outside of `jit`, `grad` and `vmap`.
        """
        params = self.params if params is None else params
        return pure.call(self._scores, params, pixels, text_ids, text_mask)

    def heatmaps(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Int[Array, "b L"],
        text_mask: Bool[Array, "b L"],
        params: functional.Params | None = None,
    ) -> Float[Array, "b s s 2"]:
        """Both heatmaps as a pure JAX function; arguments as in `scores`.

        Returns:
          float32 [B,S,S,2] in [0,1] at the network's side S, order `rahf.batch.HEATMAPS`, high = bad.
        """
        params = self.params if params is None else params
        return pure.call(self._heatmaps, params, pixels, text_ids, text_mask)

    def _given(self, images: Any, prompts: Any) -> tuple[list[Any], list[inputs.Text]]:
        images = inputs.image_list(images)
        known: dict[str, inputs.Text] = {}
        texts = []
        for prompt in inputs.prompt_list(prompts, len(images)):
            if prompt not in known:
                known[prompt] = inputs.encode(prompt, self.config.data, self.tokenizer)
            texts.append(known[prompt])
        return images, texts

    def _feedback(self, images, texts, batch_size, generate, on_error, progress=False):
        for rows, pictures, found, generated in self._run(
            images, texts, batch_size, generate, keep=True, on_error=on_error, progress=progress
        ):
            for at, (row, picture) in enumerate(zip(rows, pictures)):
                one = Prediction(*(field[at] for field in found))
                said = None if generated is None else self.tokenizer.decode(generated[at])
                yield row, feedback_lib.make(texts[row], picture, one, said, self.model_id)

    def _run(self, images, texts, batch_size, generate=False, keep=False, on_error=None, progress=False):
        """Yields positions, pictures, NumPy predictions and generated ids of one batch after the other."""
        size = _batch_size(batch_size, len(images))
        side = self.config.model.image_size
        for rows, pictures in inputs.decoded(images, side, size, keep, on_error, progress):
            # The last batch is filled with copies: equally large, and generation ends as early as without.
            order = [*range(len(rows)), *[0] * (size - len(rows))]
            arrays = [np.stack([getattr(texts[rows[i]], name) for i in order]) for name in _TEXT_FIELDS]
            squares = np.stack([pictures[i].square for i in order])
            output = self._forward(self.params, squares, *arrays, generate=generate)
            found, generated = jax.tree.map(lambda x: np.array(x[: len(rows)]), jax.device_get(output))
            yield rows, pictures, found, generated


_TEXT_FIELDS = ("text_ids", "text_mask", "prompt_ids", "word_end")


def _batch_size(asked: int | None, count: int) -> int:
    if asked is None:
        return min(_DEFAULT_BATCH, 1 << (count - 1).bit_length())
    if asked < 1:
        raise ValueError(f"batch_size: expected at least 1, found {asked}")
    return asked


def load(path: str | os.PathLike, *, dtype: Any = None) -> Critic:
    """Loads a trained model.

    Args:
      path: a run directory (its best checkpoint, else the newest), or one checkpoint of it
        (`RUN/checkpoints/latest/1000`).
      dtype: "float32" or "bfloat16" to compute in; None: as it was trained. Parameters stay float32.

    Raises:
      rahf.train.checkpoint.CheckpointError: no model there, a damaged one, or one of another architecture
        than its `config.json` says (lists the shapes that differ).
      rahf.config.ConfigError: `config.json` has an unknown field.
      ValueError: another dtype.
    """
    # Orbax takes a second to import; a critic made from its parts does not need it.
    from rahf.train import checkpoint

    run, state = checkpoint.find(path)
    config = _config(run / "config.json", dtype)
    _, shapes = functional.abstract(model_lib.build(config.model))
    # Saved from other devices perhaps; here everything goes to the first.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    params = checkpoint.load_params(state, shapes)
    try:
        tokenizer = Tokenizer.load(run / "tokenizer.model")
    except (OSError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{run}: its vocabulary cannot be read ({error})") from error
    rows = config.model.t5.vocab_size
    if tokenizer.vocab_size > rows:
        raise checkpoint.CheckpointError(
            f"{run}: tokenizer.model has {tokenizer.vocab_size} pieces but the network only {rows}; "
            "it is not the vocabulary that this model was trained with"
        )
    step = int(state.parent.name) if state.parent.name.isdigit() else None
    return Critic(config, params, tokenizer, run.name, step)


def _config(file: pathlib.Path, dtype: Any) -> Config:
    try:
        config = config_lib.from_json(file.read_text(), where=str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise config_lib.ConfigError(f"{file}: cannot be read ({error})") from error
    if dtype is None:
        return config
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected float32 or bfloat16, found {name}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, compute_dtype=name))
