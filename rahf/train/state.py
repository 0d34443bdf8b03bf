"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rahf.config import Config
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.train import optimizer as optimizer_lib
from rahf.train import sharding


class TrainState(NamedTuple):
    """Step (int32 scalar: steps done), parameters, optimizer state, and averaged parameters if asked for."""

    step: jax.Array
    params: functional.Params
    opt_state: optax.OptState
    ema: functional.Params | None

    @property
    def best_params(self) -> functional.Params:
        """The parameters to evaluate and to hand out: the average if there is one."""
        return self.params if self.ema is None else self.ema


class Setup(NamedTuple):
    """Everything about a run that does not change: structure, optimizer, mesh, and where the state lies."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    shapes: TrainState  # of jax.ShapeDtypeStruct with shardings
    shardings: TrainState


def _around(config: Config, optimizer: optax.GradientTransformation, params: functional.Params) -> TrainState:
    """The state of a run that has not begun, around given parameters."""
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def setup(config: Config, devices: list | None = None) -> Setup:
    """Structure, optimizer, mesh and shapes of a run; allocates nothing."""
    mesh = sharding.make_mesh(config.mesh, devices)
    graphdef, params = functional.abstract(model_lib.build(config.model))
    optimizer = optimizer_lib.make(config.optimizer, config.model, config.train.steps)
    shapes = jax.eval_shape(lambda params: _around(config, optimizer, params), params)
    shardings = sharding.tree_shardings(shapes, mesh)
    with_shardings: Any = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings
    )
    return Setup(graphdef, optimizer, mesh, with_shardings, shardings)


def create(config: Config, made: Setup) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its share."""
    params = functional.init(model_lib.build(config.model), config.train.seed, made.shardings.params)
    around = jax.jit(lambda p: _around(config, made.optimizer, p), out_shardings=made.shardings, donate_argnums=0)
    return around(params)
