"""A trained model, ready for use: images and prompts in, feedback out, differentiable in the pixels.

critic = rahf.load("runs/demo")
critic.score(["cat.png", "dog.jpg"], "a photo of a pet", "overall")   # float32 [2]
critic.rank("a photo of a pet", ["cat.png", "dog.jpg"]).order         # best first
prediction = critic(["cat.png", "dog.jpg"], "a photo of a pet")       # arrays
for feedback in critic.feedback(paths, prompts):                      # one object per image
    print(feedback.scores, feedback.misaligned_words)

reward = critic.reward("overall")                                     # a pure JAX function
tokens = critic.tokens("a photo of a pet")
gradient = jax.grad(lambda pixels: reward(pixels, tokens).sum())(pixels)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config
from rahf.core import labels, process, tree
from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.core.errors import ArgumentError, ImageError, NotFinite, NotPredicted
from rahf.critic import families, provenance
from rahf.critic import feedback as feedback_lib
from rahf.critic.families import Outputs
from rahf.critic.feedback import Feedback
from rahf.critic.network import Network
from rahf.critic.provenance import CriticPrediction, Provenance, ScoreArray
from rahf.images import inputs
from rahf.nn import pixels as pixels_lib
from rahf.text import Tokenizer
from rahf.text import prompts as prompts_lib
from rahf.text.prompts import EncodedPrompt, Tokens

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Array, Bool, Float, Int

#: Largest default batch size: bounds memory with large networks.
_DEFAULT_BATCH = 16


class Ranking(NamedTuple):
    """Images of one prompt, in order.

    Attributes:
      order: int [N], positions of the images, best first. Of equal scores the earlier image comes first.
      scores: float32 [N], in the order in which the images were given.
    """

    order: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> int:
        """Position of the best image."""
        return int(self.order[0])


class Critic:
    """A network with its parameters, vocabulary and preprocessing.

    Attributes:
      config: of the run, with the compute dtype in use.
      params: nested dict of arrays, float32 (or bfloat16, if the file was exported so).
      network: its pure functions.
      tokenizer: of the prompts.
      name: of the run.
      step: training step at which the parameters were saved, None if unknown.
      outputs: what it predicts. Everything else is NaN in its predictions, and is refused where a score, a heatmap or a
        reward is chosen by name.
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
        outputs: Outputs | None = None,
    ):
        """Assembles a critic from its parts; `rahf.load` reads them from a run directory or an exported file.

        Args:
          network: functions of the network; None: built from its Flax modules.
          describe: computes the provenance when it is first needed; None: computed from the other arguments.
          outputs: what it predicts; None: all that its family does.

        Raises:
          ForkedProcess: this process was forked from one that has loaded a model.
        """
        process.claim()
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.name, self.step, self._describe = name, step, describe
        if network is None:
            # Imported here, because it imports Flax, which is not installed where only exported files are read.
            from rahf.critic import apply

            network = apply.network(config, tokenizer)
        self.outputs = families.outputs(config.model) if outputs is None else outputs
        if self.outputs.not_learnt:
            network = _without_not_learnt(network, self.outputs)
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
        """What every prediction carries: model id, preprocessing hash, weight license, reference quantiles."""
        return self._describe(self) if self._describe else provenance.critic_provenance(self)

    @property
    def model_id(self) -> str:
        """Name, step, and a hash of what decides about the numbers: parameters, network, vocabulary."""
        return self.provenance.model_id

    def __reduce__(self) -> Any:
        raise TypeError(
            "a critic cannot be pickled: its functions are compiled for this process. Hand its path to the other "
            "process, and call rahf.load there"
        )

    def __repr__(self) -> str:
        size, side = tree.count(self.params) / 1e6, self.config.model.image_size
        details = f"{size:.1f}M parameters, {side} x {side} pixels, weights: {self.provenance.weight_license}"
        note = self.outputs.note()
        return f"Critic({self.name!r}, step {self.step}, {details}{f'; {note}' if note else ''})"

    def __call__(
        self, images: Any, prompts: str | Sequence[str], batch_size: int | None = None, progress: bool | None = None
    ) -> CriticPrediction:
        """Predicts for one image or many of any sizes.

        Args:
          images: one or many: paths, encoded bytes, Pillow images, arrays [h,w,3] of NumPy, JAX or PyTorch (uint8, or
            float in [0,1], which is rounded to 8 bits). Each is resized to the network's square as in evaluation.
          prompts: one for all images, or one per image.
          batch_size: images per step; the last batch is padded, so that it needs no compilation of its own.
            None: the smallest power of two that holds all images, at most 16.
          progress: show a bar on stderr if that is a terminal; None: for more than 64 images.

        Returns:
          NumPy float32: `heatmaps` [N,S,S,2] at the network's side S, `scores` [N,4], `word_probabilities`
          [N,K] with K = `config.data.max_words`, 0 beyond the words of a prompt. A file exported with scores
          only gives None for the other two. What the model does not predict (`outputs`) is NaN. `.score(name)` and
          `.heatmap(name)` pick one by name. The prediction carries its model: `.provenance`, `.percentiles`; comparing
          its scores with another model's warns with `rahf.critic.provenance.ModelMismatch`.

        Raises:
          NotFinite: the network computes NaN or infinity for an image; names the image and the output.
          rahf.images.ImageError: an image cannot be used; names it.
          ValueError, TypeError: no images, an empty prompt, another number of prompts than images, or images and
            prompts swapped.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        images, texts = self._encode(images, prompts)
        prompts_lib.warn(texts)
        side, words = self.config.model.image_size, self.config.data.max_words
        full = self._forward is not None
        result = Prediction(
            np.empty((len(images), side, side, len(HEATMAPS)), np.float32) if full else None,
            np.empty((len(images), len(SCORES)), np.float32),
            np.empty((len(images), words), np.float32) if full else None,
        )
        for rows, _, batch, _ in self._run(images, texts, batch_size, progress=progress):
            for array, part in zip(result, batch):
                if array is not None:
                    array[rows] = part
        return CriticPrediction(*result, self.provenance)

    #: The same under the name that other libraries use.
    predict = __call__

    def score(
        self,
        images: Any,
        prompts: str | Sequence[str],
        score: str | Mapping[str, float] = "overall",
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Float[np.ndarray, " n"]:
        """One score per image; faster than `__call__`, because heatmaps and words are not computed.

        Args:
          images, prompts, batch_size, progress: as in `__call__`.
          score: a name of `rahf.core.batch.SCORES`, or weights by name, which give the weighted sum.

        Returns:
          NumPy float32 [N], high = good.

        Raises:
          NotPredicted: the model does not predict the score, or one of those with a weight.
          ValueError: also for an unknown score; suggests the nearest.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        self.outputs.check_score(score)  # a wrong name must not cost a run over all images
        images, texts = self._encode(images, prompts, "critic.score(images, prompts, score)")
        prompts_lib.warn(texts)
        return self._score(images, texts, score, batch_size, progress)

    def rank(
        self,
        prompt: str,
        images: Any,
        score: str | Mapping[str, float] = "overall",
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Ranking:
        """Orders images that were made from one prompt, best first.

        Args:
          prompt: of all images.
          images, batch_size, progress: as in `__call__`.
          score: as in `score`.

        Returns:
          `order` and `scores`; `.best` is the position of the best image.

        Raises:
          NotPredicted: the model does not predict the score, or one of those with a weight.

        Warns:
          PromptWarning: the prompt is too long; names the words lost.
        """
        self.outputs.check_score(score)
        images, texts = self._encode(images, prompt, "critic.rank(prompt, images)")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected one text for all images, found {type(prompt).__name__}")
        prompts_lib.warn(texts)
        scores = self._score(images, texts, score, batch_size, progress)
        return Ranking(np.argsort(-np.asarray(scores), kind="stable"), scores)

    def feedback(
        self,
        images: Any,
        prompts: str | Sequence[str],
        batch_size: int | None = None,
        progress: bool | None = None,
        generate: bool = False,
    ) -> list[Feedback]:
        """Predicts like `__call__`, and returns one object per image with everything by name.

        Args:
          generate: decide about words by generating the target sequence and aligning it with the prompt. If
            False, constrained scoring decides: a word is misaligned if its probability is above 0.5.

        Raises:
          ValueError: also for an exported file with `generate`, or one exported with scores only.
        """
        images, texts = self._encode(images, prompts, "critic.feedback(images, prompts)")
        prompts_lib.warn(texts)
        return [feedback for _, feedback in self._feedback(images, texts, batch_size, generate, None, progress)]

    def iterate(
        self,
        images: Any,
        prompts: str | Sequence[str],
        batch_size: int | None = None,
        generate: bool = False,
        on_error: Callable[[int, ImageError], None] | None = None,
    ) -> Iterator[tuple[int, Feedback]]:
        """Like `feedback`, one image at a time: long lists need not fit into memory.

        Args:
          on_error: called with the position and error of an image that cannot be used, which is then left out;
            None: the error is raised.

        Yields:
          Position in `images` and feedback, in order. `Feedback.notes` names words that were cut off; there is no
          warning.
        """
        images, texts = self._encode(images, prompts, "critic.iterate(images, prompts)")
        return self._feedback(images, texts, batch_size, generate, on_error)

    def tokens(self, prompts: str | Sequence[str]) -> Tokens:
        """Prompts → `text_ids` int32 [B,L] and `text_mask` bool [B,L], which `scores`, `heatmaps` and `reward` take.

        Raises:
          ValueError, TypeError: an empty prompt, or one that is not text.

        Warns:
          PromptWarning: a prompt is too long; names the words lost.
        """
        texts = [
            prompts_lib.encode(prompt, self.config.data, self.tokenizer) for prompt in prompts_lib.prompt_list(prompts)
        ]
        prompts_lib.warn(texts)
        return Tokens(np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts]))

    def scores(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Tokens | Int[Array, "b L"],
        text_mask: Bool[Array, "b L"] | None = None,
        params: tree.Params | None = None,
    ) -> Float[Array, "b 4"]:
        """The four scores as a pure JAX function, for `jit`, `grad` and `vmap`; differentiable in the pixels.

        Args:
          pixels: float [B,h,w,3] in [0,1], any size (resized inside, antialiased bilinear; not rounded), or uint8,
            which becomes the square that `critic(images)` sees. Without a batch axis, the result has none, either.
          text_ids: the `Tokens` of `tokens`; or its ids alone, followed by `text_mask`. One row serves all images.
          text_mask: of `tokens`, if `text_ids` is not the pair.
          params: other parameters of the same shapes, e.g. to pass them as an argument of your own `jit`
            instead of as constants of the compiled program.

        Returns:
          float32 [B,4] in [0,1], order `rahf.core.batch.SCORES`, high = good.

        Raises:
          ImageError: another shape (channels first is named) or dtype, or values below -0.25 or above 1.25: an
            optimizer may leave [0,1] by a step, a picture in -1..1 or 0..255 is another picture. Values under `jit`,
            `grad` or `vmap` are not checked.
          TypeError: paths, Pillow images or PyTorch tensors instead of pixels, or prompts instead of tokens.
        """
        return self._call(self._scores, pixels, text_ids, text_mask, params)

    def heatmaps(
        self,
        pixels: Float[Array, "b h w 3"],
        text_ids: Tokens | Int[Array, "b L"],
        text_mask: Bool[Array, "b L"] | None = None,
        params: tree.Params | None = None,
    ) -> Float[Array, "b s s 2"]:
        """Both heatmaps as a pure JAX function; arguments as in `scores`.

        Returns:
          float32 [B,S,S,2] in [0,1] at the network's side S, order `rahf.core.batch.HEATMAPS`, high = bad.
        """
        if self._heatmaps is None:
            raise ArgumentError(_ONLY_SCORES)
        return self._call(self._heatmaps, pixels, text_ids, text_mask, params)

    def reward(self, score: str | Mapping[str, float] = "overall") -> Callable[..., Array]:
        """A score, or a weighted sum of scores, as a pure function of the arguments of `scores`.

        Args:
          score: a name of `rahf.core.batch.SCORES`, or weights by name.

        Returns:
          Function of (pixels, tokens) or (pixels, text_ids, text_mask), and `params=None`. It returns float32 [B]
          (or [] for one image), high = good, differentiable in the pixels.

        Raises:
          NotPredicted: the model does not predict the score, or one of those with a weight.
          ValueError: an unknown score; suggests the nearest.
        """
        self.outputs.check_score(score)  # a wrong name fails here, not at the first call

        def reward(pixels, text_ids, text_mask=None, params=None):
            return labels.weighted(self.scores(pixels, text_ids, text_mask, params), score)

        reward.critic = self  # a generator that gets the reward tokenises its prompts for this critic
        return reward

    def _call(self, function, pixels, text_ids, text_mask, params):
        process.claim()
        if text_mask is None:
            if not (isinstance(text_ids, tuple) and len(text_ids) == 2):
                raise TypeError(
                    f"tokens: expected those of critic.tokens(prompts), or text_ids and text_mask, "
                    f"found {type(text_ids).__name__}"
                )
            text_ids, text_mask = text_ids
        params = self.params if params is None else params
        return pixels_lib.call(function, params, pixels, text_ids, text_mask)

    def _encode(
        self, images: Any, prompts: Any, call: str = "critic(images, prompts)"
    ) -> tuple[list[Any], list[EncodedPrompt]]:
        """A list of images, and the encoded prompt of each; `call` says how to write the call if they are swapped."""
        images = inputs.image_list(images)
        inputs.check_order(images, prompts, call)
        encoded: dict[str, EncodedPrompt] = {}
        texts = []
        for prompt in prompts_lib.prompt_list(prompts, len(images)):
            if prompt not in encoded:
                encoded[prompt] = prompts_lib.encode(prompt, self.config.data, self.tokenizer)
            texts.append(encoded[prompt])
        return images, texts

    def _score(self, images, texts, score, batch_size, progress):
        scores = np.empty((len(images), len(SCORES)), np.float32)
        for rows, _, batch, _ in self._run(images, texts, batch_size, progress=progress, scores_only=True):
            scores[rows] = batch.scores
        return labels.weighted(ScoreArray(scores, self.provenance), score)

    def _feedback(self, images, texts, batch_size, generate, on_error, progress=None):
        if self._forward is None:
            raise ArgumentError(_ONLY_SCORES)
        if generate and not self.outputs.keywords:
            raise NotPredicted("generate: this model does not judge the words of a prompt; leave generate out")
        if generate and self.graphdef is None:
            raise ArgumentError(
                "generate: an exported file decides about words by constrained scoring only; leave generate out, "
                "or load the run directory"
            )
        for rows, pictures, batch, generated in self._run(
            images, texts, batch_size, generate, keep=True, on_error=on_error, progress=progress
        ):
            for at, (row, picture) in enumerate(zip(rows, pictures)):
                prediction = Prediction(*(field[at] for field in batch))
                text = texts[row]
                word_labels = None if generated is None else self.tokenizer.target_labels(text.words, generated[at])
                yield row, feedback_lib.make(text, picture, prediction, word_labels, self.provenance)

    def _run(
        self, images, texts, batch_size, generate=False, *, keep=False, on_error=None, progress=None, scores_only=False
    ):
        """Yields positions, pictures, NumPy predictions and generated ids of one batch after the other."""
        process.claim()
        size = _batch_size(batch_size, len(images))
        side = self.config.model.image_size
        for rows, pictures in inputs.decoded(images, side, size, keep, on_error, progress):
            # Copies of the first example pad the last batch: the shape stays, and generation ends as early as without.
            order = [*range(len(rows)), *[0] * (size - len(rows))]
            arrays = [np.stack([getattr(texts[rows[i]], name) for i in order]) for name in _TEXT_FIELDS]
            squares = np.stack([pictures[i].square for i in order])
            if scores_only or self._forward is None:
                output = Prediction(None, self._scores(self.params, squares, *arrays[:2]), None), None
            else:
                output = self._forward(self.params, squares, *arrays, generate=generate)
            count = len(rows)
            prediction, generated = jax.tree.map(lambda x, n=count: np.array(x[:n]), jax.device_get(output))
            self._check_finite(prediction, [picture.name for picture in pictures])
            yield rows, pictures, prediction, generated

    def _check_finite(self, prediction: Prediction, names: Sequence[str]) -> None:
        """Raises NotFinite for the first image of a batch of which an output that is predicted is not finite."""
        for output, values in self.outputs.predicted(prediction).items():
            finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if not finite.all():
                output = output.replace("_", " ")
                error = NotFinite(
                    f"{names[int(np.argmin(finite))]}: the network's {output} are not finite (NaN or infinite), "
                    f"computed in {self.config.model.compute_dtype}; load the model in float32, or another checkpoint "
                    "of it"
                )
                error.output = output
                raise error


def _without_not_learnt(network: Network, outputs: Outputs) -> Network:
    """The network with NaN in the place of outputs whose head has not been trained."""

    def forward(*arguments, **options):
        prediction, generated = network.forward(*arguments, **options)
        return outputs.hide(prediction, jnp.where), generated

    return network._replace(
        forward=network.forward and forward,
        scores=lambda *arguments: outputs.hide_scores(network.scores(*arguments), jnp.where),
        heatmaps=network.heatmaps and (lambda *a: outputs.hide_heatmaps(network.heatmaps(*a), jnp.where)),
    )


_ONLY_SCORES = (
    "this file was exported with --scores-only: it has no heatmaps and words; export the model again without it"
)
_TEXT_FIELDS = ("text_ids", "text_mask", "prompt_ids", "word_end")


def _batch_size(batch_size: int | None, count: int) -> int:
    if batch_size is None:
        return min(_DEFAULT_BATCH, 1 << (count - 1).bit_length())
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, found {batch_size}")
    return batch_size
