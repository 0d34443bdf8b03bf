"""Trains motion models, their ablations and renderers in minutes, on an accelerator or a core; writes run directories.

    rahf prepare motion --synthetic 1000 --size 64x40 --terms 24 --out data/motion
    python benchmarks/motion_training.py VARIANT [--seed 0] [--data data/motion] [--out runs/motion] [--seconds 280]

Variants: main, plain (without adaptive normalisation), volume (all frequencies at once as channels), k4, k8 and k24
(other numbers of frequencies than 16), renderer (softmax and average splatting). volume, k4, k8 and k24 take the
autoencoder of main's run of the same seed and wait for it. All may run beside each other; each ends by itself.

The losses are those of `rahf train`. What differs is the loop: all clips lie in memory, the frozen autoencoder encodes
them once, and the learning rate falls as a cosine of time. On an accelerator seconds of steps are one call, so that
networks which are too small to keep it busy from the host learn as long as they are given. Shares of `--seconds`, to
which compilation comes: autoencoder 28 %, denoiser 50 %, attention across frequencies the rest. A variant without an
autoencoder of its own leaves out that time; volume gives its denoiser the rest. Runs: OUT/VARIANT_SEED_independent
after the second stage, OUT/VARIANT_SEED_joint after the third, OUT/renderer_SPLAT_SEED.
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
from rahf.core.errors import RahfError
from rahf.core.files import replacing_folder
from rahf.core.tree import Params
from rahf.diffusion.networks.autoencoder import AutoencoderKL
from rahf.motion import losses
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.renderer_task import RendererTask
from rahf.motion.task import TRAINED, MotionTask, alphas_cumprod
from rahf.nn import execution, functional
from rahf.training.checkpoint import Checkpointer
from rahf.training.task import Task

#: By name the number of frequencies.
VARIANTS = {"main": 16, "plain": 16, "volume": 16, "k4": 4, "k8": 8, "k24": 24, "renderer": 16}
#: Shares of the time.
_SHARES = {"autoencoder": 0.28, "diffusion": 0.5, "frequency": 0.22}
#: Examples of a step on an accelerator, and on a CPU, where more of them only make a step longer.
_BATCH = {"autoencoder": (64, 4), "diffusion": (128, 32), "frequency": (16, 2), "volume": (64, 32)}
_BATCH |= {"renderer": (32, 8)}
_RATES = {"autoencoder": 5e-3, "diffusion": 2e-3, "frequency": 1e-3}  # of the rest 1e-3
_LEAST_RATE, _WARMUP, _DECAY = 0.02, 100, 0.998
_CALL_SECONDS = 1.5
_LATENTS_OF = 16  # clips from which the scale of the latents is taken, and which are encoded at once
VAE = AutoencoderKLConfig(
    in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8
)


#: A network, the data, a key → the mean loss of examples drawn by it.
LossOf = Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array]


class Stage:
    """Steps of training as one program, which compiles in the background; on a CPU one step.

    XLA computes the gradient of a convolution's kernel inside a loop 20 to 60 times more slowly on a CPU.
    """

    def __init__(
        self,
        pool: concurrent.futures.Executor,
        name: str,
        build: Callable[[], Any],
        loss: LossOf,
        params: Params,
        trained: Sequence[str],
        data: dict[str, jax.Array],
    ):
        """Args: a name, a network, its loss, parameters and data whose shapes count, which parts are trained."""
        self.name, self.parts = name, tuple(trained)
        self.looped = jax.default_backend() != "cpu"
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(0.9, 0.99),
            optax.add_decayed_weights(0.01, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
        )
        shape = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)  # noqa: E731
        own, rest = self.split(shape(params))
        key, number = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32)
        arguments = (own, rest, jax.eval_shape(self.optimizer.init, own), own, shape(data), key, number, number)
        steps = jax.jit(self._steps(build, loss), compiler_options=execution.options_of_convolutions()).lower
        self.compiled = pool.submit(lambda: steps(*arguments, jax.ShapeDtypeStruct((), jnp.int32)).compile())

    def split(self, params: Params) -> tuple[Params, Params]:
        """What is trained, and what is not."""
        own = {part: value for part, value in params.items() if part in self.parts}
        return own, {part: value for part, value in params.items() if part not in own}

    def _steps(self, build: Callable[[], Any], loss_of: LossOf) -> Callable[..., Any]:
        graphdef, _ = functional.abstract(build)

        def steps(trained, frozen, state, mean, data, key, rate, before, count):
            def step(number, carry):
                trained, state, mean, total = carry
                draw = jax.random.fold_in(key, number)
                loss = lambda own: loss_of(functional.merge(graphdef, {**frozen, **own}), data, draw)  # noqa: E731
                value, grads = jax.value_and_grad(loss)(trained)
                finite = jnp.isfinite(sum(jnp.square(grad).sum() for grad in jax.tree.leaves(grads)))
                grads = jax.tree.map(lambda grad: jnp.where(finite, grad, 0.0), grads)
                updates, state = self.optimizer.update(grads, state, trained)
                trained = jax.tree.map(lambda leaf, update: leaf - rate * update, trained, updates)
                decay = jnp.minimum(_DECAY, (1.0 + before + number) / (10.0 + before + number))
                mean = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mean, trained)
                return trained, state, mean, total + value

            carry = (trained, state, mean, 0.0)
            if not self.looped:
                return step(0, carry)
            trained, state, mean, total = jax.lax.fori_loop(0, count, step, carry)
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
        losses = []
        for count in [steps] if self.stage.looped else [1] * steps:
            key = jax.random.fold_in(jax.random.key(1000 + self.seed), self.steps)
            numbers = np.float32(rate), np.float32(self.steps), np.int32(count)
            self.trained, self.state, self.mean, loss = self.stage.compiled.result()(
                self.trained, self.frozen, self.state, self.mean, data, key, *numbers
            )
            self.steps += count
            losses.append(float(loss))
        return float(np.mean(losses))


def main() -> None:
    """Parses, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--seed", default=0, type=int, help="of the parameters and of all chance")
    parser.add_argument("--data", default="data/motion", help="of rahf prepare motion")
    parser.add_argument("--out", default="runs/motion", type=pathlib.Path, help="folder of run directories")
    parser.add_argument("--seconds", default=280.0, type=float, help="of training, without compilation")
    args = parser.parse_args()
    terms = VARIANTS[args.variant]
    if read.description(args.data).terms < terms:
        raise SystemExit(f"{args.data}: {args.variant} needs {terms} terms: rahf prepare motion --terms {terms}")
    with concurrent.futures.ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else 3) as pool:
        (renderers if args.variant == "renderer" else chain)(args, pool)


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


def _examples(data: dict[str, jax.Array], key: jax.Array, size: int) -> MotionBatch:
    which, when = jax.random.split(key)
    index = jax.random.randint(which, (size,), 0, data["image"].shape[0])
    later, target = jnp.zeros(size, jnp.int32), data["image"][index]
    if "target" in data:
        number = jax.random.randint(when, (size,), 0, data["time"].shape[1])
        later, target = data["time"][index, number], data["target"][index, number]
    spectrum = data["spectrum"][index].astype(jnp.float32)
    return MotionBatch(data["image"][index], spectrum, later, target, jnp.ones(size, bool), index)


def of_task(task: Task, size: int) -> LossOf:
    """The loss of `rahf train` for examples drawn at random."""

    def loss(model, data, key):
        draw, noise = jax.random.split(key)
        return task.loss(model, _examples(data, draw, size), noise, None, 0, jnp.float32(size)).total

    return loss


def of_latents(task: MotionTask, size: int) -> LossOf:
    """`rahf.motion.losses.denoising` of latents that were encoded before."""
    abar = jnp.asarray(alphas_cumprod(task.config.model), jnp.float32)
    alone = task.config.model.stage == "diffusion" and task.config.model.prediction == "slices"

    def loss(model, data, key):
        which, what, noise, own = jax.random.split(key, 4)
        index = jax.random.randint(which, (size,), 0, data["image"].shape[0])
        frequencies = jax.random.randint(what, (size,), 0, data["mean"].shape[1]) if alone else None
        mean, std = (
            data[part][index, frequencies][:, None] if alone else data[part][index] for part in ("mean", "std")
        )
        clean = (mean + std * jax.random.normal(noise, mean.shape)) * model.latent_scale[...]
        keys = jax.random.split(own, size)
        return losses.noise_error(model, clean, frequencies, data["image"][index], abar, keys).mean()

    return loss


def batch_size(stage: str) -> int:
    """Examples of a step on this machine."""
    return _BATCH[stage][jax.default_backend() == "cpu"]


def train(runs: Sequence[Run], data: dict[str, jax.Array], seconds: float) -> None:
    """The runs of a stage in turn for some time, or of several stages of the same length."""
    for run in runs:
        run.stage.compiled.result()
    begin, steps, values = time.time(), 1, []
    end = begin + seconds
    while (now := time.time()) < end:
        share = (now - begin) / (end - begin)
        fallen = _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + np.cos(np.pi * share))
        rate = _RATES.get(runs[0].stage.name, 1e-3) * fallen
        values = [run.advance(data, rate * min(1.0, (runs[0].steps + 1) / _WARMUP), steps) for run in runs]
        each = (time.time() - now) / steps
        steps = int(np.clip(min(_CALL_SECONDS, 0.5 * (end - time.time())) / each, 1, 2 * steps))
    row = {"stage": runs[0].stage.name, "steps": runs[0].steps, "seconds": round(time.time() - begin, 1)}
    print(json.dumps({**row, "losses": [round(value, 5) for value in values]}), flush=True)


def chain(args: argparse.Namespace, pool: concurrent.futures.Executor) -> None:
    """Autoencoder, denoiser, attention across frequencies."""
    name, seed = args.variant, args.seed
    data = clips(args.data, targets=False)
    data["spectrum"] = data["spectrum"][:, : VARIANTS[name]]
    description = (pathlib.Path(args.data) / MOTION_FILE).read_bytes()
    height, width = data["image"].shape[1:3]
    model = MotionConfig(
        width=width,
        height=height,
        vae=VAE,
        block_out_channels=(32, 64),
        terms=VARIANTS[name],
        normalisation="plain" if name == "plain" else "adaptive",
        prediction="volume" if name == "volume" else "slices",
    )
    config = Config(data=DataConfig(path=args.data), model=model)
    with_stage = lambda stage: dataclasses.replace(config, model=dataclasses.replace(model, stage=stage))  # noqa: E731
    own = name in ("main", "plain")
    names = [*(["autoencoder"] if own else []), "diffusion", *([] if name == "volume" else ["frequency"])]
    tasks = {stage: MotionTask(with_stage(stage), description) for stage in names}
    build = tasks["diffusion"].build()
    params = functional.init(build, seed)
    latents = {"image": data["image"], **_shapes_of_latents(data, model)}
    stages = {}
    for stage, task in tasks.items():
        size = batch_size("volume" if name == "volume" else stage)
        loss, needed = (of_task, data) if stage == "autoencoder" else (of_latents, latents)
        stages[stage] = Stage(pool, stage, build, loss(task, size), params, (TRAINED[stage],), needed)
    if not own:
        params["vae"] = _autoencoder_of_main(args.out, seed, params["vae"], args.seconds)
    for stage in names:
        seconds = (_SHARES[stage] + (_SHARES["frequency"] if name == "volume" else 0)) * args.seconds
        if stage == "diffusion":
            latents |= encoded(tasks[stage], params["vae"], data)
            deviation = latents["mean"][:_LATENTS_OF].std()
            params["latent_scale"] = jnp.full((1,), 1 / max(float(deviation), 1e-6), jnp.float32)
            if name == "main":
                _write_autoencoder(args.out, seed, params["vae"])
        run = Run(stages[stage], params, seed)
        train([run], jax.device_put(data if stage == "autoencoder" else latents), seconds)
        params = run.params()
        if stage != "autoencoder":
            kind = "joint" if stage == "frequency" else "independent"
            write_run(args.out / f"{name}_{seed}_{kind}", with_stage(stage), params, description)


def renderers(args: argparse.Namespace, pool: concurrent.futures.Executor) -> None:
    """Both ways of splatting, in turn."""
    frames, runs, configs = read.description(args.data).frames, [], []
    data = jax.device_put(clips(args.data, targets=True))
    for splat in ("softmax", "average"):
        model = MotionRendererConfig(splat=splat, block_out_channels=(16, 32))
        configs.append(Config(data=DataConfig(path=args.data), model=model))
        task = RendererTask(configs[-1], frames)
        params = functional.init(task.build(), args.seed)
        loss = of_task(task, batch_size("renderer"))
        stage = Stage(pool, f"renderer_{splat}", task.build(), loss, params, tuple(params), data)
        runs.append(Run(stage, params, args.seed))
    train(runs, data, args.seconds)
    for run, config in zip(runs, configs):
        write_run(args.out / f"{run.stage.name}_{args.seed}", config, run.params())


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


def _shapes_of_latents(data: dict[str, np.ndarray], config: MotionConfig) -> dict[str, jax.ShapeDtypeStruct]:
    factor = 2 ** (len(config.vae.block_out_channels) - 1)
    clips, terms, height, width = data["spectrum"].shape[:4]
    shape = (clips, terms, height // factor, width // factor, config.vae.latent_channels)
    return {part: jax.ShapeDtypeStruct(shape, jnp.float32) for part in ("mean", "std")}


def encoded(task: MotionTask, vae: Params, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and deviation of the latents of all clips, not scaled, float32 [n,K,h,w,c]."""
    config = task.config.model
    graphdef, _ = functional.abstract(lambda: AutoencoderKL(config.vae, dtype=jnp.float32))

    @jax.jit
    def encode(vae, spectra):
        slices = spectrum_lib.normalise(spectra.astype(jnp.float32), task.scales, config.normalisation)
        latents = functional.merge(graphdef, vae).encode(slices.reshape(-1, *slices.shape[2:]))
        return [part.reshape(*slices.shape[:2], *part.shape[1:]) for part in latents]

    spectra, parts = data["spectrum"], []
    for start in range(0, len(spectra), _LATENTS_OF):
        some = spectra[start : start + _LATENTS_OF]
        filled = np.concatenate([some, np.repeat(some[-1:], _LATENTS_OF - len(some), 0)])
        parts.append([np.asarray(part)[: len(some)] for part in encode(vae, filled)])
    return {name: np.concatenate(values) for name, values in zip(("mean", "std"), zip(*parts))}


def _write_autoencoder(out: pathlib.Path, seed: int, vae: Params) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"autoencoder_{seed}.npz.part"
    with open(part, "wb") as file:
        np.savez(file, **{path: np.asarray(value) for path, value in functional.flatten(vae).items()})
    part.rename(out / f"autoencoder_{seed}.npz")


def _autoencoder_of_main(out: pathlib.Path, seed: int, like: Params, seconds: float) -> Params:
    """Waits until main has written it."""
    path, end = out / f"autoencoder_{seed}.npz", time.time() + seconds
    while not path.exists():
        if time.time() > end:
            raise SystemExit(f"{path} is absent; train main with this seed before or beside this variant")
        time.sleep(0.5)
    with np.load(path) as file:
        loaded = functional.unflatten({name: jnp.asarray(file[name]) for name in file})
    if differences := functional.parameter_differences(loaded, like):
        raise SystemExit(f"{path}: of another network: {'; '.join(differences)}")
    return loaded


if __name__ == "__main__":
    try:
        main()
    except RahfError as error:
        raise SystemExit(f"error: {error}") from None
