"""Trains motion models, their ablations and renderers on an accelerator in minutes; writes run directories.

    rahf prepare motion --synthetic 1000 --size 64x40 --out data/motion
    python benchmarks/motion_training.py VARIANT [--data data/motion] [--out runs/motion] [--seconds 280]

Variants: main (seeds 0 and 1), plain (without adaptive normalisation), volume (all frequencies at once as channels), k4
and k8 (the first 4 and 8 frequencies), renderer (softmax and average splatting). volume, k4 and k8 take the autoencoder
of main's seed 0 and wait for it. All may run beside each other; each ends by itself.

The losses are those of `rahf train`. What differs is the loop: all clips lie in the accelerator's memory, seconds of
steps are one call, and the learning rate falls as a cosine of time, so that networks which are too small to keep an
accelerator busy from the host learn as long as they are given. An autoencoder gets the first third of the time, the
denoiser 40 %, attention across frequencies the rest, compilation included. Runs: OUT/VARIANT_SEED_independent after the
second stage, OUT/VARIANT_SEED_joint after the third, OUT/renderer_SPLAT.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from data_pipelines.video.prepare import MOTION_FILE
from rahf import images
from rahf.config import AutoencoderKLConfig, Config, DataConfig, MotionConfig, MotionRendererConfig, to_json
from rahf.core.files import replacing_folder
from rahf.core.tree import Params
from rahf.diffusion.networks.autoencoder import AutoencoderKL
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.renderer_task import RendererTask
from rahf.motion.task import TRAINED, MotionTask
from rahf.nn import functional
from rahf.training.checkpoint import Checkpointer
from rahf.training.task import Task

VARIANTS = ("main", "plain", "volume", "k4", "k8", "renderer")
#: Share of the time at which a stage ends.
_ENDS = {"autoencoder": 0.34, "diffusion": 0.74, "frequency": 1.0, "renderer": 1.0}
_BATCH = {"autoencoder": 64, "diffusion": 128, "frequency": 16, "renderer": 32}
_VOLUME_BATCH = 64  # of the second stage where each clip is one example
_RATE, _LEAST_RATE, _WARMUP, _DECAY = 1e-3, 0.02, 100, 0.998
_CALL_SECONDS = 1.5
_LATENTS_OF = 16  # clips from which the scale of the latents is taken
VAE = AutoencoderKLConfig(
    in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8
)


class Stage:
    """A task's step, many times over in one program, which compiles in the background."""

    def __init__(
        self,
        pool: concurrent.futures.Executor,
        name: str,
        task: Task,
        params: Params,
        trained: Sequence[str],
        data: dict[str, jax.Array],
        batch_size: int,
    ):
        """Args: a name, the task, parameters whose shapes count, which parts are trained, all clips, batch size."""
        self.name, self.parts = name, tuple(trained)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(0.9, 0.99),
            optax.add_decayed_weights(0.01, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
        )
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        own, rest = self.split(shapes)
        key, number = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32)
        arguments = (own, rest, jax.eval_shape(self.optimizer.init, own), own, data, key, number, number)
        steps = jax.jit(self._steps(task, batch_size)).lower
        self.compiled = pool.submit(lambda: steps(*arguments, jax.ShapeDtypeStruct((), jnp.int32)).compile())

    def split(self, params: Params) -> tuple[Params, Params]:
        """What is trained, and what is not."""
        own = {part: value for part, value in params.items() if part in self.parts}
        return own, {part: value for part, value in params.items() if part not in own}

    def _steps(self, task: Task, batch_size: int) -> Callable[..., Any]:
        graphdef, _ = functional.abstract(task.build())

        def steps(trained, frozen, state, mean, data, key, rate, before, count):
            def step(number, carry):
                trained, state, mean, total = carry
                draw, noise = jax.random.split(jax.random.fold_in(key, number))
                batch = _batch(data, draw, batch_size, task.terms)

                def loss(trained):
                    model = functional.merge(graphdef, {**frozen, **trained})
                    return task.loss(model, batch, noise, None, 0, jnp.float32(batch_size)).total

                value, grads = jax.value_and_grad(loss)(trained)
                finite = jnp.isfinite(sum(jnp.square(grad).sum() for grad in jax.tree.leaves(grads)))
                grads = jax.tree.map(lambda grad: jnp.where(finite, grad, 0.0), grads)
                updates, state = self.optimizer.update(grads, state, trained)
                trained = jax.tree.map(lambda leaf, update: leaf - rate * update, trained, updates)
                decay = jnp.minimum(_DECAY, (1.0 + before + number) / (10.0 + before + number))
                mean = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mean, trained)
                return trained, state, mean, total + value

            trained, state, mean, total = jax.lax.fori_loop(0, count, step, (trained, state, mean, 0.0))
            return trained, state, mean, total / count

        return steps


class Run:
    """The parameters of one seed in a stage."""

    def __init__(self, stage: Stage, params: Params, seed: int):
        self.stage, self.seed, self.steps = stage, seed, 0
        self.trained, self.frozen = stage.split(params)
        self.mean, self.state = self.trained, stage.optimizer.init(self.trained)

    def params(self) -> Params:
        """All of them, the trained ones averaged over steps."""
        return {**self.frozen, **self.mean}

    def advance(self, data: dict[str, jax.Array], rate: float, steps: int) -> float:
        """Some steps; their mean loss."""
        key = jax.random.fold_in(jax.random.key(1000 + self.seed), self.steps)
        numbers = np.float32(rate), np.float32(self.steps), np.int32(steps)
        self.trained, self.state, self.mean, loss = self.stage.compiled.result()(
            self.trained, self.frozen, self.state, self.mean, data, key, *numbers
        )
        self.steps += steps
        return float(loss)


def main() -> None:
    """Parses, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--data", default="data/motion", help="of rahf prepare motion")
    parser.add_argument("--out", default="runs/motion", type=pathlib.Path, help="folder of run directories")
    parser.add_argument("--seconds", default=280.0, type=float, help="in all, compilation included")
    args = parser.parse_args()
    begin = time.time()
    ends = {stage: begin + share * args.seconds for stage, share in _ENDS.items()}
    data = jax.device_put(clips(args.data, targets=args.variant == "renderer"))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        (renderers if args.variant == "renderer" else chain)(args, pool, data, ends)


def clips(path: str, targets: bool) -> dict[str, np.ndarray]:
    """All training clips: pictures, spectral volumes as float16, and with `targets` the later pictures."""
    source = read.open_clips(path, "train")
    records = [source[number] for number in range(len(source))]
    picture = lambda encoded, uid: images.load_rgb(encoded, what=f"picture of clip {uid}")  # noqa: E731
    arrays = {
        "image": np.stack([picture(one.image, one.uid) for one in records]),
        "spectrum": np.stack([one.volume.channels.astype(np.float16) for one in records]),
    }
    if targets:
        arrays["time"] = np.array([one.times for one in records], np.int32)
        arrays["target"] = np.array([[picture(later, one.uid) for later in one.targets] for one in records])
    return arrays


def _batch(data: dict[str, jax.Array], key: jax.Array, size: int, terms: int | None) -> MotionBatch:
    which, when = jax.random.split(key)
    index = jax.random.randint(which, (size,), 0, data["image"].shape[0])
    spectrum = data["spectrum"][index][:, :terms].astype(jnp.float32)
    later, target = jnp.zeros(size, jnp.int32), data["image"][index]
    if "target" in data:
        number = jax.random.randint(when, (size,), 0, data["time"].shape[1])
        later, target = data["time"][index, number], data["target"][index, number]
    return MotionBatch(data["image"][index], spectrum, later, target, jnp.ones(size, bool), index)


def train(runs: Sequence[Run], data: dict[str, jax.Array], end: float) -> None:
    """The runs of a stage in turn until a time, or of several stages of the same length."""
    for run in runs:
        run.stage.compiled.result()
    begin, steps, losses = time.time(), 2, []
    while (now := time.time()) < end:
        share = (now - begin) / (end - begin)
        rate = _RATE * (_LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + np.cos(np.pi * share)))
        losses = [run.advance(data, rate * min(1.0, (runs[0].steps + 1) / _WARMUP), steps) for run in runs]
        each = (time.time() - now) / steps
        steps = int(np.clip(min(_CALL_SECONDS, 0.5 * (end - time.time())) / each, 1, 2 * steps))
    row = {"stage": runs[0].stage.name, "steps": runs[0].steps, "seconds": round(time.time() - begin, 1)}
    print(json.dumps({**row, "losses": [round(loss, 5) for loss in losses]}), flush=True)


def chain(
    args: argparse.Namespace, pool: concurrent.futures.Executor, data: dict[str, jax.Array], ends: dict[str, float]
) -> None:
    """Autoencoder, denoiser, attention across frequencies."""
    name = args.variant
    description = (pathlib.Path(args.data) / MOTION_FILE).read_bytes()
    height, width = data["image"].shape[1:3]
    model = MotionConfig(
        width=width,
        height=height,
        vae=VAE,
        block_out_channels=(32, 64),
        terms={"k4": 4, "k8": 8}.get(name, 16),
        normalisation="plain" if name == "plain" else "adaptive",
        prediction="volume" if name == "volume" else "slices",
    )
    config = Config(data=DataConfig(path=args.data), model=model)
    with_stage = lambda stage: dataclasses.replace(config, model=dataclasses.replace(model, stage=stage))  # noqa: E731
    own, seeds = name in ("main", "plain"), (0, 1) if name == "main" else (0,)
    names = [*(["autoencoder"] if own else []), "diffusion", *([] if name == "volume" else ["frequency"])]
    tasks = {stage: MotionTask(with_stage(stage), description) for stage in names}
    params = {seed: functional.init(tasks["diffusion"].build(), seed) for seed in seeds}
    sizes = _BATCH | ({"diffusion": _VOLUME_BATCH} if name == "volume" else {})
    stages = {
        stage: Stage(pool, stage, task, params[0], (TRAINED[stage],), data, sizes[stage])
        for stage, task in tasks.items()
    }
    if not own:
        params[0]["vae"] = _autoencoder_of_main(args.out, params[0]["vae"], ends["frequency"])
    for stage in names:
        if stage == "diffusion":
            for seed in seeds:
                params[seed] = _with_latent_scale(tasks[stage], params[seed], data)
            if name == "main":
                _write_autoencoder(args.out, params[0]["vae"])
        runs = [Run(stages[stage], params[seed], seed) for seed in seeds]
        train(runs, data, ends[stage])
        params = {run.seed: run.params() for run in runs}
        if stage != "autoencoder":
            kind = "joint" if stage == "frequency" else "independent"
            for seed in seeds:
                write_run(args.out / f"{name}_{seed}_{kind}", with_stage(stage), params[seed], description)


def renderers(
    args: argparse.Namespace, pool: concurrent.futures.Executor, data: dict[str, jax.Array], ends: dict[str, float]
) -> None:
    """Both ways of splatting, in turn."""
    frames, runs, configs = read.description(args.data).frames, [], []
    for splat in ("softmax", "average"):
        configs.append(Config(data=DataConfig(path=args.data), model=MotionRendererConfig(splat=splat)))
        task = RendererTask(configs[-1], frames)
        params = functional.init(task.build(), 0)
        stage = Stage(pool, f"renderer_{splat}", task, params, tuple(params), data, _BATCH["renderer"])
        runs.append(Run(stage, params, 0))
    train(runs, data, ends["renderer"])
    for run, config in zip(runs, configs):
        write_run(args.out / run.stage.name, config, run.params())


def write_run(folder: pathlib.Path, config: Config, params: Params, description: bytes | None = None) -> None:
    """Writes a run directory: config, parameters, and of a motion model the scales of its frequencies."""
    with replacing_folder(folder) as unfinished:
        (unfinished / "config.json").write_text(to_json(dataclasses.replace(config, workdir=str(folder))))
        if description is not None:
            (unfinished / MOTION_FILE).write_bytes(description)
        checkpoints = Checkpointer(unfinished, keep=1)
        try:
            checkpoints.save_best(0, params, {})
        finally:
            checkpoints.close()


def _with_latent_scale(task: MotionTask, params: Params, data: dict[str, jax.Array]) -> Params:
    """One over the standard deviation of the latents of some clips."""
    config = task.config.model
    graphdef, _ = functional.abstract(lambda: AutoencoderKL(config.vae, dtype=jnp.float32))
    spectra = data["spectrum"][:_LATENTS_OF, : config.terms].astype(jnp.float32)
    slices = spectrum_lib.normalise(spectra, task.scales, config.normalisation)
    slices = slices.reshape(-1, *slices.shape[2:])
    mean = jax.jit(lambda params, slices: functional.merge(graphdef, params).encode(slices).mean)(params["vae"], slices)
    return {**params, "latent_scale": jnp.full((1,), 1 / max(float(mean.std()), 1e-6), jnp.float32)}


def _write_autoencoder(out: pathlib.Path, vae: Params) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / "autoencoder.npz.part"
    with open(part, "wb") as file:
        np.savez(file, **{path: np.asarray(value) for path, value in functional.flatten(vae).items()})
    part.rename(out / "autoencoder.npz")


def _autoencoder_of_main(out: pathlib.Path, like: Params, end: float) -> Params:
    """Waits until main has written it."""
    while not (out / "autoencoder.npz").exists():
        if time.time() > end:
            raise SystemExit(f"{out}: no autoencoder.npz; train main before or beside this variant")
        time.sleep(0.5)
    with np.load(out / "autoencoder.npz") as file:
        loaded = functional.unflatten({path: jnp.asarray(file[path]) for path in file})
    if differences := functional.parameter_differences(loaded, like):
        raise SystemExit(f"{out / 'autoencoder.npz'}: of another network: {'; '.join(differences)}")
    return loaded


if __name__ == "__main__":
    main()
