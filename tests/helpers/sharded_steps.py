"""Losses, gradients, steps and checkpoints on meshes of 8 fake CPU devices, as JSON. Run by test_sharding.py."""

import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np

from rahf.config import (
    Config,
    CriticConfig,
    HeatmapHeadConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ScoreHeadConfig,
)
from rahf.core import batch as batch_lib
from rahf.critic import contrastive
from rahf.critic.contrastive import ContrastiveTask
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.training import checksum, sharding
from rahf.training import state as state_lib
from rahf.training import step as step_lib
from rahf.training.checkpoint import Checkpointer
from tests.helpers.baseline_maker import CLIP
from tests.helpers.model_maker import SMALLEST

# Wide enough that the larger parameters are shared at all; without what only takes time to compile.
WIDE = dataclasses.replace(
    SMALLEST,
    vit=dataclasses.replace(SMALLEST.vit, width=64, mlp_width=256),
    t5=dataclasses.replace(SMALLEST.t5, vocab_size=256, width=64, head_width=64, heads=4, mlp_width=256),
    heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=()),
    score_head=ScoreHeadConfig(conv_widths=(), dense_widths=(64,)),
)
AUGMENTED = dataclasses.replace(WIDE, variant="augmented-prompt", task_ids=((5,), (6, 7), (8,), (9,), (10,), (11,)))
#: Mesh, devices, and training steps to make; without any, just loss and gradients.
RUNS = {
    "single": (MeshConfig(), 1, 2),
    "data": (MeshConfig(data=8), 8, 0),
    "fsdp": (MeshConfig(data=1, fsdp=8), 8, 0),
    "tensor": (MeshConfig(data=1, tensor=8), 8, 0),
    "mixed": (MeshConfig(data=2, fsdp=2, tensor=2), 8, 2),
    "augmented single": (MeshConfig(), 1, 0, AUGMENTED),
    "augmented mixed": (MeshConfig(data=2, fsdp=2, tensor=2), 8, 0, AUGMENTED),
}


def held(tree):
    """Bytes of a tree on each device that holds any."""
    bytes_on = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            bytes_on[shard.device] += shard.data.nbytes
    return [number for number in bytes_on.values() if number]


def cut(params) -> list[int]:
    """Elements of the parameters that are shared out: in all, and on the fullest device; the largest of the others."""
    leaves = jax.tree.leaves(params)
    shared = [leaf for leaf in leaves if leaf.addressable_shards[0].data.size < leaf.size]
    whole = [leaf.size for leaf in leaves if leaf.addressable_shards[0].data.size == leaf.size]
    here = sum(max(s.data.size for s in leaf.addressable_shards) for leaf in shared)
    return [sum(leaf.size for leaf in shared), here, max(whole)]


def run(mesh: MeshConfig, devices: int, steps: int, model: CriticConfig = WIDE) -> dict:
    """What lies where, the loss, and metrics of steps."""
    config = Config(model=model, mesh=mesh, optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-3))
    setup = state_lib.setup(CriticTask(config, None), jax.devices()[:devices])
    state = state_lib.create(CriticTask(config, None), setup)
    batch = sharding.to_devices(batch_lib.fake(8, 16, 9, 11, 5, vocab_size=256, seed=1), setup.mesh)
    found = {
        "params": held(state.params),
        "opt_state": held(state.opt_state),
        "examples": [len(shard.data) for shard in batch.scores.addressable_shards],
        "placed": {path: str(leaf.sharding.spec) for path, leaf in functional.flatten(state.params).items()},
        "cut": cut(state.params),
        "steps": [],
    }
    gradient = jax.jit(lambda p, b: step_lib.loss_and_gradients(CriticTask(config, None), setup.graphdef, p, b, 0))
    (loss, parts), gradients = gradient(state.params, batch)
    found["loss"] = [float(loss), *map(float, parts.values())]
    found["apart"] = apart(functional.flatten(jax.device_get(gradients)), model.variant)
    if not steps:
        return found
    step = step_lib.make_train_step(CriticTask(config, None), setup)
    for _ in range(steps):
        state, metrics = step(state, batch)
        values = (metrics.total, *metrics.parts.values(), metrics.gradient_norm)
        found["steps"].append([float(value) for value in values])
    assert jax.tree.map(lambda x: x.sharding, state) == setup.shardings  # it stays where it was born
    squares = [np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(state.params)]
    return found | {"norm": float(sum(squares)) ** 0.5}


GRADIENTS: dict[str, dict[str, np.ndarray]] = {}  # of one device, by variant


def apart(gradients: dict[str, np.ndarray], variant: str) -> list:
    """The parameter whose gradient differs most from that of one device, and by how much of its largest element."""
    single = GRADIENTS.setdefault(variant, gradients)
    distances = {
        path: float(np.abs(value - single[path]).max() / max(np.abs(single[path]).max(), 1e-3))
        for path, value in gradients.items()
    }
    worst = max(distances, key=distances.get)
    return [distances[worst], worst, len(distances)]


class Watched:
    """Notes the largest piece of each array that JAX is given for one device, as a share of the array."""

    NAMES = ("make_array_from_callback", "make_array_from_single_device_arrays")

    def __enter__(self):
        self.shares: dict[tuple, float] = {}
        self.before = {name: getattr(jax, name) for name in self.NAMES}
        jax.make_array_from_callback = self.from_callback
        jax.make_array_from_single_device_arrays = self.from_arrays
        return self

    def __exit__(self, *_):
        for name, function in self.before.items():
            setattr(jax, name, function)

    def note(self, shape, size):
        self.shares[tuple(shape)] = max(self.shares.get(tuple(shape), 0), size / np.prod(shape, dtype=int))

    def from_callback(self, shape, sharding, callback, *rest, **more):
        def watched(index):
            piece = callback(index)
            self.note(shape, piece.size)
            return piece

        return self.before["make_array_from_callback"](shape, sharding, watched, *rest, **more)

    def from_arrays(self, shape, sharding, arrays, *rest, **more):
        for piece in arrays:
            self.note(shape, piece.size)
        return self.before["make_array_from_single_device_arrays"](shape, sharding, arrays, *rest, **more)


def wanted_shares(shapes) -> dict[tuple, float]:
    """The largest share of the parameters of a shape that the rules give to one device."""
    shares: dict[tuple, float] = {}
    for leaf in jax.tree.leaves(shapes):
        share = np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) / np.prod(leaf.shape, dtype=int)
        shares[tuple(leaf.shape)] = max(shares.get(tuple(leaf.shape), 0.0), float(share))
    return shares


def wander(folder: pathlib.Path) -> dict:
    """A checkpoint goes from 8 devices to 1 and on to 4; what came back, and in which pieces."""
    found, values, sums, previous = {}, None, None, None
    meshes = ((MeshConfig(data=1, fsdp=8), 8), (MeshConfig(), 1), (MeshConfig(fsdp=2, tensor=2), 4))
    for mesh, devices in meshes:
        config = Config(model=WIDE, mesh=mesh, optimizer=OptimizerConfig(ema_decay=0.9))
        setup = state_lib.setup(CriticTask(config, None), jax.devices()[:devices])
        with Watched() as watched:
            if previous is None:
                state, position = state_lib.create(CriticTask(config, None), setup), {"examples": 8}
            else:
                state, position = Checkpointer(previous, keep=1).restore(setup.shapes)
        wanted = wanted_shares(setup.shapes.params)
        now = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        sums_now = checksum.of_arrays({"params": state.params})
        found[str(devices)] = {
            "seen": len(set(watched.shares) & set(wanted)) / len(wanted),
            "cut": sum(share < 1 for share in wanted.values()),
            "larger": [list(shape) for shape, share in wanted.items() if watched.shares.get(shape, 0) > share],
            "placed": jax.tree.map(lambda x: x.sharding, state) == setup.shardings,
            "same": values is None or all(a.tobytes() == b.tobytes() for a, b in zip(now, values, strict=True)),
            "checksums": sums is None or sums == sums_now,
            "position": position,
        }
        values, sums, previous = now, sums_now, folder / str(devices)
        saver = Checkpointer(previous, keep=1)
        saver.save(state, position)
        saver.close()
    by_devices = {f"params/{p}": int(checksum.by_devices(x)) for p, x in functional.flatten(state.params).items()}
    return found | {"by_devices": by_devices == sums}


def contrastive_losses(devices: int) -> list[float]:
    """Each example's loss of a CLIP, whose pictures meet the prompts of all devices."""
    config = Config(model=CLIP, mesh=MeshConfig(data=devices), loss=LossConfig(contrastive="all"))
    task = ContrastiveTask(config, None)
    setup = state_lib.setup(task, jax.devices()[:devices])
    batch = batch_lib.fake(8, 16, 9, 11, 5, vocab_size=48, seed=1)
    params = functional.init(task.build(), 0)
    losses = jax.jit(lambda p, b: contrastive.measured(functional.merge(setup.graphdef, p), b).loss)
    return [float(value) for value in losses(params, sharding.to_devices(batch, setup.mesh))]


if __name__ == "__main__":
    results = {name: run(*options) for name, options in RUNS.items()}
    results["contrastive"] = [contrastive_losses(1), contrastive_losses(8)]
    with tempfile.TemporaryDirectory() as made:
        results["wander"] = wander(pathlib.Path(made))
    print(json.dumps(results))
