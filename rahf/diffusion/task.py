"""Stable Diffusion learns pictures with their prompts, as a `Task`: from scratch, or from a model that exists."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import Config, StableDiffusionConfig, read_saved
from rahf.core.batch import Batch
from rahf.core.errors import TrainError
from rahf.core.tree import Params
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.feedback import noise
from rahf.diffusion.networks.stable_diffusion import Conditions, StableDiffusion, is_inpainting
from rahf.nn import functional, pixels
from rahf.text import ClipTokenizer
from rahf.text.vocabulary import too_many_pieces
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import LOSS, MeanEvaluator
from rahf.training.record_task import RecordTask
from rahf.training.run_lock import begun
from rahf.training.task import Loss, Start


class TextToImageTask(RecordTask):
    """Learns to tell noise and picture apart (Ho et al. 2020), on prepared records; their labels are not looked at.

    U-Net and text tower learn, or what `optimizer.trainable` names, or adapters. An autoencoder never does, and comes
    from `start.model`; `model.patches` needs none.
    """

    @classmethod
    def from_config(cls, config: Config) -> TextToImageTask:
        """The task of a run, with the vocabulary that `config.data.tokenizer` names.

        A model that is not configured is that of `start.model`, or the run's own.

        Raises:
          TrainError, DatasetError, CheckpointError: fields that contradict each other, no such model or vocabulary.
        """
        start_lib.check(config)
        if config.start.vision or config.start.text:
            raise TrainError("start.vision, start.text: a diffusion model has no published towers; give start.model")
        fresh = not begun(pathlib.Path(config.workdir))
        config = _completed(config, fresh)
        tokenizer = start_lib.tokenizer(config, fresh, config.model.text_encoder.vocab_size)
        if not isinstance(tokenizer, ClipTokenizer):
            raise TrainError(
                f"{tokenizer.source}: a SentencePiece vocabulary, which Stable Diffusion's text towers do not read; "
                'set data.tokenizer to "prompts" to learn one from the prompts, or to "start" for that of start.model'
            )
        if problem := too_many_pieces(tokenizer, config.model.text_encoder.vocab_size, "text_encoder"):
            raise TrainError(problem)
        return cls(config, tokenizer)

    def __init__(self, config: Config, tokenizer: ClipTokenizer | None):
        super().__init__(config, tokenizer)
        model: StableDiffusionConfig = config.model
        if model.text_encoder_2 is not None or is_inpainting(model):
            raise TrainError(
                "model: training on pictures is for models with one text tower that draw whole pictures (Stable "
                "Diffusion 1.x, 2.x), not for XL and inpainting"
            )
        if config.data.max_prompt_tokens != model.text_encoder.positions:
            raise TrainError(
                f"data.max_prompt_tokens {config.data.max_prompt_tokens}: expected {model.text_encoder.positions}, "
                "model.text_encoder.positions; the text tower reads as many tokens, padding included"
            )
        if model.patches is None and not (config.optimizer.trainable or config.optimizer.lora.rank):
            raise TrainError(
                'optimizer.trainable: give the parts that learn, as ("unet/*",), or optimizer.lora; the autoencoder '
                "stays as it is"
            )

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: StableDiffusion(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        return start_lib.from_model(self.config, shapes) if self.config.start.model else None

    def loss(
        self,
        model: nnx.Module,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        when, what, which = jax.random.split(key, 3)
        count = len(batch.text_ids)
        dropped = jax.random.bernoulli(which, self.config.model.prompt_dropout, (count,))
        # Spread evenly over all times (Kingma et al. 2021), which lowers the gradient's variance.
        shares = (jax.random.uniform(when) + jnp.arange(count) / count) % 1.0
        values = self._errors(model, batch, shares, what, dropped)
        return Loss(jnp.where(batch.example_mask, values, 0.0).sum() / normalizers, {})

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        """Of the loss; each example has its own time and noise in every evaluation."""
        batches = self.eval_loader(mesh)
        return MeanEvaluator(self._repeatable, lambda: batches, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return LOSS

    def _repeatable(self, model: nnx.Module, batch: Batch) -> Float[Array, " b"]:
        """The loss, float32 [B]: time and noise of an example follow from its position in the split alone."""
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(batch.index.astype(jnp.uint32))
        # The golden ratio spreads any number of examples evenly over the times.
        return self._errors(model, batch, (batch.index.astype(jnp.float32) * 0.6180339887) % 1.0, keys)

    def _errors(
        self, model: nnx.Module, batch: Batch, shares: Array, keys: Array, dropped: Array | None = None
    ) -> Float[Array, " b"]:
        """Of pictures at these shares of the times, with noise of a key, or of one key each."""
        graphdef, params = functional.split(model)
        side, total = self.config.model.image_size, self.config.model.scheduler.num_train_timesteps
        timesteps = jnp.clip((shares * total).astype(jnp.int32), 0, total - 1)
        conditions = model.encode_prompt((self._padded(batch),))
        if dropped is not None:
            empty = model.encode_prompt((jnp.asarray(self._nothing()),))
            conditions = Conditions(jnp.where(dropped[:, None, None], empty.text, conditions.text))
        return noise.per_picture(graphdef, params, conditions, pixels.unit(batch.image, side), timesteps, keys)

    def _padded(self, batch: Batch) -> Array:
        """Tokens as the pipeline gives them: behind the end is the padding of the text tower."""
        return jnp.where(batch.text_mask, batch.text_ids, self.config.model.pad_token_ids[0])

    def _nothing(self) -> np.ndarray:
        """Tokens of the empty prompt, int32 [1,L]."""
        one = self.tokenizer.encode_prompt("", self.config.model.text_encoder.positions)
        return np.where(one.mask, one.ids, self.config.model.pad_token_ids[0])[None].astype(np.int32)


def _completed(config: Config, fresh: bool) -> Config:
    """The config with the model of `start.model` where none is configured."""
    if not config.start.model:
        if config.model.patches is None:
            raise TrainError(
                "start.model: expected a model directory of `rahf import stable-diffusion`, whose U-Net is trained "
                "further; from scratch only models with model.patches learn (configs/diffusion/demo.py)"
            )
        return config
    folder = saved_lib.find(config.start.model).run if fresh else pathlib.Path(config.workdir)
    if config.model == StableDiffusionConfig():
        config = dataclasses.replace(config, model=read_saved(folder / "config.json").model)
    if not isinstance(config.model, StableDiffusionConfig):
        raise TrainError(f"start.model {folder}: a model of the family {config.model.family!r}, no Stable Diffusion")
    return config
