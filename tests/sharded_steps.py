"""Losses and training steps on meshes of 8 fake CPU devices, printed as JSON. Run by test_sharding.py."""

import dataclasses
import json

import jax
import numpy as np
from model_maker import SMALLEST

from rahf import batch as batch_lib
from rahf import losses
from rahf.config import Config, HeatmapHeadConfig, MeshConfig, OptimizerConfig, ScoreHeadConfig
from rahf.models import functional
from rahf.train import sharding
from rahf.train import state as state_lib
from rahf.train import step as step_lib

# Wide enough that the larger parameters are shared at all; without what only takes time to compile.
WIDE = dataclasses.replace(
    SMALLEST,
    vit=dataclasses.replace(SMALLEST.vit, width=64, mlp_width=256),
    t5=dataclasses.replace(SMALLEST.t5, vocab_size=256, width=64, head_width=64, heads=4, mlp_width=256),
    heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=()),
    score_head=ScoreHeadConfig(conv_widths=(), dense_widths=(64,)),
)
#: Mesh, devices, and training steps to make; without any, just the loss.
RUNS = {
    "single": (MeshConfig(), 1, 2),
    "data": (MeshConfig(data=8), 8, 0),
    "fsdp": (MeshConfig(data=1, fsdp=8), 8, 0),
    "mixed": (MeshConfig(data=2, fsdp=2, tensor=2), 8, 2),
}


def held(tree):
    """Bytes of a tree on each device that holds any."""
    bytes_on = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            bytes_on[shard.device] += shard.data.nbytes
    return [number for number in bytes_on.values() if number]


def run(mesh: MeshConfig, devices: int, steps: int) -> dict:
    """What lies where, the loss, and metrics of steps."""
    config = Config(model=WIDE, mesh=mesh, optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-3))
    setup = state_lib.setup(config, jax.devices()[:devices])
    state = state_lib.create(config, setup)
    batch = sharding.to_devices(batch_lib.fake(8, 16, 9, 11, 5, vocab_size=256, seed=1), setup.mesh)
    found = {
        "params": held(state.params),
        "opt_state": held(state.opt_state),
        "examples": [len(shard.data) for shard in batch.scores.addressable_shards],
        "placed": {path: str(leaf.sharding.spec) for path, leaf in functional.flatten(state.params).items()},
        "steps": [],
    }
    if not steps:
        forward = jax.jit(lambda p, b: losses.total(config.loss, functional.merge(setup.graphdef, p)(b), b))
        loss, parts = forward(state.params, batch)
        return found | {"loss": [float(loss), *map(float, parts)]}
    step = step_lib.make_train_step(config, setup)
    for _ in range(steps):
        state, metrics = step(state, batch)
        values = (metrics.total, *metrics.parts, metrics.gradient_norm)
        found["steps"].append([float(value) for value in values])
    assert jax.tree.map(lambda x: x.sharding, state) == setup.shardings  # it stays where it was born
    squares = [np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(state.params)]
    return found | {"loss": found["steps"][0][:-1], "norm": float(sum(squares)) ** 0.5}


if __name__ == "__main__":
    print(json.dumps({name: run(*options) for name, options in RUNS.items()}))
