"""Measures a training step: forward, backward and optimizer. Prints one JSON line.

    python benchmarks/train_step.py --preset demo|vitl|fast|paper [--batch 32] [--compile-only] [config fields]
    python benchmarks/train_step.py --preset vitl --trace FILE        # also a profile: FILE.json.gz, and its summary

`tflop_per_second` counts the products and convolutions that a step must do, not those that are recomputed to save
memory. `share_of_matmul_peak` divides it by the speed of a large matrix product in the same run. `--compile-only`
allocates nothing and runs nothing: it prints the compiler's plan of the memory, for a network of any size.
"""

from __future__ import annotations

import json
import time

import jax
import measuring
import profiling
import turns

from rahf.core import process
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.nn.flops import count_flops
from rahf.training import sharding, trainable
from rahf.training import state as state_lib
from rahf.training.step import loss_and_gradients, make_train_step


def flops(config, batch) -> int:
    """Floating-point operations of the loss and its gradient with respect to the trained parameters."""
    plain = measuring.without_recomputation(config)
    setup = state_lib.setup(CriticTask(plain, None))
    shapes = setup.shapes
    trained = trainable.trained(plain.optimizer, shapes.params, shapes.lora)

    def step(params, lora, trained, batch):
        merge = lambda tree: trainable.merged(*trainable.replaced(params, lora, tree))  # noqa: E731
        return loss_and_gradients(CriticTask(plain, None), setup.graphdef, trained, batch, 0, merge)

    return count_flops(step, shapes.params, shapes.lora, trained, batch)


def main() -> None:
    """Parses, measures, prints."""
    parser = measuring.arguments(__doc__.split("\n")[0])
    parser.add_argument("--compile-only", action="store_true", help="only the compiler's plan of the memory")
    parser.add_argument(
        "--trace", metavar="FILE", help="profile three more steps: FILE.json.gz for Perfetto, and a table"
    )
    args, fields = parser.parse_known_args()
    process.dispatch_in_line()
    turns.share()
    config = measuring.preset(args.preset, args.batch, fields)
    size = config.data.batch_size
    setup = state_lib.setup(CriticTask(config, None))
    parameters = functional.count(setup.shapes.params)
    result = {"benchmark": "train step", "preset": args.preset, **measuring.described(config, size)}
    result |= {"accumulate": config.train.accumulate, "optimizer": config.optimizer.kind}
    result |= {"lora_rank": config.optimizer.lora.rank, "trainable": list(config.optimizer.trainable)}
    result["million_parameters"] = round(parameters / 1e6, 1)
    step = make_train_step(CriticTask(config, None), setup)
    host = measuring.fake(config, size)
    if args.compile_only:
        placed = sharding.batch_sharding(setup.mesh)
        dtype = lambda x: jax.dtypes.canonicalize_dtype(x.dtype)  # noqa: E731
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype(x), sharding=placed), host)
        compiled, compilation = measuring.compiled(step, setup.shapes, batch)
        print(json.dumps(result | compilation | {"gib": measuring.memory_of(compiled)}))
        return
    batch = sharding.to_devices(host, setup.mesh)
    state = state_lib.create(CriticTask(config, None), setup)
    compiled, compilation = measuring.compiled(step, state, batch)
    result |= compilation
    operations = flops(config, batch)
    turns.alone()
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch))
    result["first_step_seconds"] = round(time.perf_counter() - start, 3)
    peak = measuring.matmul_peak(config.model.compute_dtype)
    held = {"state": state}

    def call():
        held["state"], metrics = compiled(held["state"], batch)
        return metrics

    seconds = measuring.per_call(call, args.seconds, args.rounds)
    result |= measuring.speed(seconds, size, operations, peak)
    result |= {"peak_gib": round(measuring.peak_memory(), 2), "planned_gib": measuring.memory_of(compiled)}
    if args.trace:
        result["trace"] = profiling.traced(call, 3, args.trace, compiled.as_text())
    print(json.dumps(result))


if __name__ == "__main__":
    process.restart()
    main()
