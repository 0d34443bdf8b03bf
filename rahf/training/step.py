"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rahf.nn import execution, functional, gradients, layers
from rahf.training import accumulate, trainable
from rahf.training.state import Setup, TrainState
from rahf.training.task import Loss, Task

#: Added to the seed's key of a step for `Task.loss`'s `key`, so that it differs from the key of dropout.
_DRAWS = 7


class StepMetrics(NamedTuple):
    """Float32 scalars of one step: losses and gradient before its update, and what the update led to.

    Of several updates in a step, losses and gradient norms are means.
    """

    total: jax.Array
    parts: dict[str, jax.Array]
    gradient_norm: jax.Array
    parameter_norm: jax.Array  # after the update; the only sign of a last update that went wrong
    labels: dict[str, jax.Array] = {}  # numbers of labels in the batch, `Task.label_counts`


def loss_and_gradients(
    task: Task,
    graphdef: Any,
    params: functional.Params,
    batch: Any,
    step: jax.Array,
    merge: Callable[[functional.Params], functional.Params] = lambda params: params,
    base: functional.Params | None = None,
) -> tuple[Loss, functional.Params]:
    """Loss of a batch and gradients with respect to `params`, in `train.accumulate` parts one after the other.

    Keys are fold_in(seed, step), so a resumed run draws what the undisturbed one would have drawn.

    Args:
      params: what is trained, all parameters or a part of them.
      batch: the whole batch, on the devices.
      step: int32 scalar, steps done.
      merge: makes all parameters of `params`.
      base: all parameters without adapters, for tasks that use them.
    """
    config = task.config
    step_key = jax.random.fold_in(jax.random.key(config.train.seed), step)
    dropout_key = step_key if task.uses_dropout else None
    draw_key = jax.random.fold_in(step_key, _DRAWS)
    batch = task.prepare_batch(batch)
    normalizers = task.normalizers(batch)
    options = {"base": functional.merge(graphdef, base)} if task.uses_base else {}

    def part_loss(batch: Any, number: jax.Array | None) -> tuple[tuple[jax.Array, dict], functional.Params]:
        key, part_key = draw_key, dropout_key
        if number is not None:
            key = jax.random.fold_in(draw_key, number)
            part_key = layers.subkey(dropout_key, number)

        def loss(params: functional.Params) -> tuple[jax.Array, dict]:
            model = functional.merge(graphdef, merge(params))
            return task.loss(model, batch, key, part_key, step, normalizers, **options)

        with gradients.of_training():
            return jax.value_and_grad(loss, has_aux=True)(params)

    parts = config.train.accumulate
    (total, named), grads = part_loss(batch, None) if parts == 1 else accumulate.summed(part_loss, batch, parts)
    return Loss(total, named), grads


def make_train_step(task: Task, setup: Setup) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Compiles (state, batch) → (state, metrics). The old state is donated."""
    optimizer = task.config.optimizer

    def update(state: TrainState, batch: Any) -> tuple[TrainState, tuple[Loss, jax.Array]]:
        """One update; the number of steps stays."""
        trained = trainable.trained(optimizer, state.params, state.lora)
        merge = lambda tree: trainable.merged(*trainable.replaced(state.params, state.lora, tree))  # noqa: E731
        base = state.params if task.uses_base else None
        loss, gradients = loss_and_gradients(task, setup.graphdef, trained, batch, state.step, merge, base)
        with jax.named_scope("optimizer"):
            updates, opt_state = setup.optimizer.update(gradients, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            # Early on the average must forget the random start: Adam-like ramp of the decay. By hand, because
            # optax.incremental_update rounds the decay once more: saved averages would not go on to the bit.
            decay = jnp.minimum(optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a * decay + p * (1.0 - decay), ema, trained)
        params, lora = trainable.replaced(state.params, state.lora, trained)
        return TrainState(state.step, params, opt_state, ema, lora), (loss, optax.tree.norm(gradients))

    def updates(state: TrainState, batch: Any) -> tuple[TrainState, tuple[Loss, jax.Array]]:
        """All updates from one batch."""
        if task.updates_per_batch == 1:
            return update(state, batch)
        before = functional.merge(setup.graphdef, trainable.merged(state.params, state.lora))
        batch = task.rollout(before, batch)
        state, measured = jax.lax.scan(lambda state, _: update(state, batch), state, length=task.updates_per_batch)
        return state, jax.tree.map(jnp.mean, measured)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        state, (loss, gradient_norm) = updates(state, batch)
        trained = trainable.trained(optimizer, state.params, state.lora)
        counts = task.label_counts(task.normalizers(task.prepare_batch(batch)))  # computed once, with those of the loss
        metrics = StepMetrics(loss.total, loss.parts, gradient_norm, optax.tree.norm(trained), counts)
        return state._replace(step=state.step + 1), metrics

    options = execution.options_of_convolutions() if task.convolutional else None
    return jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, None), compiler_options=options)
