"""Adapters of Stable Diffusion learn pictures that `rahf select` has chosen: `rahf train configs/diffusion/chosen.py`.

Evaluations are those of `rahf.steer.feedback_task`: critics judge pictures that the model draws for other prompts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rahf.diffusion.feedback import noise
from rahf.nn import functional
from rahf.steer import chosen_pictures
from rahf.steer.chosen_pictures import ChosenBatch
from rahf.steer.feedback_task import FeedbackTask
from rahf.training.task import Loader, Loss


class ChosenTask(FeedbackTask):
    """The noise-prediction loss on pictures with their prompts."""

    loss_parts = ()

    def train_loader(self) -> Loader:
        return chosen_pictures.ChosenLoader(
            chosen_pictures.read(self.feedback.chosen),
            lambda prompts: self.encode(prompts)[:2],
            self.config.model.image_size,
            self.config.data.batch_size,
            self.config.train.seed,
            (jax.process_index(), jax.process_count()),
        )

    def check_method(self) -> None:
        """Nothing of the sampler matters to this loss."""

    def loss(
        self,
        model: nnx.Module,
        batch: ChosenBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        graphdef, params = functional.split(model)
        when, what, which = jax.random.split(key, 3)
        count, total = len(batch.image), self.config.model.scheduler.num_train_timesteps
        prompt, empty = model.conditions(batch.ids, batch.negative_ids, self.size)
        dropped = jax.random.bernoulli(which, self.feedback.prompt_dropout, (count,))
        conditions = jax.tree.map(lambda x, y: jnp.where(dropped.reshape(-1, *[1] * (x.ndim - 1)), y, x), prompt, empty)
        # Spread evenly over all times (Kingma et al. 2021), which lowers the gradient's variance.
        spread = (jax.random.uniform(when) + jnp.arange(count) / count) % 1.0
        timesteps = jnp.minimum((spread * total).astype(jnp.int32), total - 1)
        pictures = batch.image.astype(jnp.float32) / 255.0
        values = noise.per_picture(graphdef, params, conditions, pictures, timesteps, what)
        return Loss(jnp.where(batch.example_mask, values, 0.0).sum() / normalizers, {})
