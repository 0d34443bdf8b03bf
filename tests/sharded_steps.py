"""Two training steps on meshes of 8 fake CPU devices; prints what it finds as JSON. Run by test_sharding.py."""

import dataclasses
import json

import jax
import numpy as np
from model_maker import SMALLEST

from rahf import batch as batch_lib
from rahf.config import Config, HeatmapHeadConfig, MeshConfig, OptimizerConfig, ScoreHeadConfig
from rahf.models import functional
from rahf.train import sharding
from rahf.train import state as state_lib
from rahf.train import step as step_lib

# Wide enough that the larger parameters are shared at all.
WIDE = dataclasses.replace(
    SMALLEST,
    vit=dataclasses.replace(SMALLEST.vit, width=64, mlp_width=256),
    t5=dataclasses.replace(SMALLEST.t5, vocab_size=256, width=64, head_width=64, heads=4, mlp_width=256),
    heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=()),
    score_head=ScoreHeadConfig(conv_widths=(), dense_widths=(64,)),
)
MESHES = {
    "single": (MeshConfig(), 1),
    "data": (MeshConfig(data=8), 8),
    "fsdp": (MeshConfig(data=1, fsdp=8), 8),
    "mixed": (MeshConfig(data=2, fsdp=2, tensor=2), 8),
}


def held(tree):
    """Bytes of a tree on each device."""
    bytes_on = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            bytes_on[shard.device] += shard.data.nbytes
    return [number for number in bytes_on.values() if number]


def steps(mesh: MeshConfig, devices: int) -> dict:
    """Losses of two steps, and what lies where."""
    config = Config(model=WIDE, mesh=mesh, optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-3, ema_decay=0.5))
    setup = state_lib.setup(config, jax.devices()[:devices])
    state = state_lib.create(config, setup)
    batch = sharding.to_devices(batch_lib.fake(8, 16, 9, 11, 5, vocab_size=256, seed=1), setup.mesh)
    born = {"params": held(state.params), "opt_state": held(state.opt_state), "ema": held(state.ema)}
    examples = [len(shard.data) for shard in batch.scores.addressable_shards]
    placed = {path: str(leaf.sharding.spec) for path, leaf in functional.flatten(state.params).items()}
    step, found = step_lib.make_train_step(config, setup), []
    for _ in range(2):
        state, metrics = step(state, batch)
        found.append([float(metrics.total), *map(float, metrics.parts), float(metrics.gradient_norm)])
    assert jax.tree.map(lambda x: x.sharding, state) == setup.shardings  # and it stays where it was born
    total = sum(float(np.square(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(state.params))
    return {"metrics": found, "born": born, "placed": placed, "examples": examples, "norm": total**0.5}


if __name__ == "__main__":
    print(json.dumps({name: steps(*mesh) for name, mesh in MESHES.items()}))
