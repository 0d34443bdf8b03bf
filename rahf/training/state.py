"""What a run carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rahf.config import Config
from rahf.nn import functional
from rahf.training import accumulate, sharding, trainable
from rahf.training import optimizer as optimizer_lib
from rahf.training.task import Task


class TrainState(NamedTuple):
    """Step (int32 scalar: steps done), parameters, optimizer state; averages and adapters if asked for.

    Optimizer state and averages belong to what is trained (`rahf.training.trainable`).
    """

    step: jax.Array
    params: functional.Params
    opt_state: optax.OptState
    ema: functional.Params | None
    lora: functional.Params | None = None

    @property
    def best_params(self) -> functional.Params:
        """The parameters to evaluate and to hand out: the average if there is one, adapters merged."""
        return trainable.merged_params(self.params, self.ema, self.lora)


class Setup(NamedTuple):
    """Everything about a run that does not change: structure, optimizer, mesh, and where the state lies."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    shapes: TrainState  # of jax.ShapeDtypeStruct with shardings
    shardings: TrainState


def _around(
    config: Config, optimizer: optax.GradientTransformation, params: functional.Params, lora: functional.Params | None
) -> TrainState:
    """The state of a run that has not begun, around parameters and adapters."""
    trained = trainable.trained(config.optimizer, params, lora)
    ema = jax.tree.map(jnp.copy, trained) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema, lora)


def setup(task: Task, devices: list | None = None) -> Setup:
    """Structure, optimizer, mesh and shapes of a run; allocates nothing.

    Raises:
      rahf.config.ConfigError: patterns of parameters that describe none, or a batch that cannot be cut into parts.
      ValueError: a mesh that does not fit the devices, or a network that cannot be built.
    """
    config = task.config
    mesh = sharding.make_mesh(config.mesh, devices)
    accumulate.check(config, mesh.devices.size)
    graphdef, params = functional.abstract(task.build())
    optimizer = optimizer_lib.make(config.optimizer, config.train.steps, task.step_factor, task.updates_per_batch)
    lora = trainable.abstract_lora(config.optimizer, params)
    shapes = jax.eval_shape(lambda *trees: _around(config, optimizer, *trees), params, lora)
    return Setup(graphdef, optimizer, mesh, sharding.placed(shapes, mesh), sharding.tree_shardings(shapes, mesh))


def create(task: Task, setup: Setup, start_params: functional.Params | None = None) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its share.

    `start_params` are parameters to start from, any part of the tree (`Task.start`); the rest is random.
    """
    config = task.config
    params = functional.init(task.build(), config.train.seed, setup.shardings.params, start_params)
    lora = trainable.make_lora(config.optimizer, setup.shapes.params, config.train.seed, setup.shardings.lora)
    around = jax.jit(
        lambda *trees: _around(config, setup.optimizer, *trees), out_shardings=setup.shardings, donate_argnums=(0, 1)
    )
    return around(params, lora)
