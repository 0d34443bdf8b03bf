"""The motion family as a `Task`: one of three stages, each on the parameters of the one before."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.video import loader as loader_lib
from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from data_pipelines.video.prepare import MOTION_FILE
from rahf.config import Config
from rahf.config.motion import MotionConfig
from rahf.core.errors import NotFinite, TrainError
from rahf.core.files import read_regular
from rahf.core.tree import Params
from rahf.diffusion import schedules
from rahf.diffusion.networks.autoencoder import AutoencoderKL
from rahf.motion import losses
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.network import MotionModel, check
from rahf.nn import functional
from rahf.training import checkpoint, multihost, sharding
from rahf.training import start as start_lib
from rahf.training.run_lock import begun
from rahf.training.task import Loader, Loss, SavedFile, Start, Task

#: The part of the network that a stage trains.
TRAINED = {"autoencoder": "vae", "diffusion": "unet", "frequency": "frequency"}
_MEASURED = 16  # clips from which the scale of the latents is taken


def alphas_cumprod(config: MotionConfig) -> np.ndarray:
    """``abar`` of each timestep, float64 [T]."""
    return schedules.scaled_linear(config.num_train_timesteps, config.beta_start, config.beta_end)


class MotionTask(Task[MotionBatch]):
    """Trains one stage; `optimizer.trainable` is the part that the stage trains unless the config names another."""

    def __init__(self, config: Config, description: bytes):
        """Args: the config, and the content of `motion.json` with the scales of the frequencies."""
        check(config.model)
        if not config.optimizer.trainable:
            trainable = (TRAINED[config.model.stage],)
            config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, trainable=trainable))
        super().__init__(config)
        self.description = description
        self.scales = np.asarray(json.loads(description)["scales"], np.float32)
        self.loss_parts = ("l1", "gradient", "kl") if config.model.stage == "autoencoder" else ()

    @classmethod
    def from_config(cls, config: Config) -> MotionTask:
        """The task of a run. Scales of a fresh run are those of its start, else of its data.

        Raises:
          TrainError, DatasetError: data of another size, or a stage without the one before.
        """
        start_lib.check(config)
        model = config.model
        if config.start.vision or config.start.text:
            raise TrainError("start.vision, start.text: a motion model has no published towers; give start.model")
        fresh = not begun(pathlib.Path(config.workdir))
        if fresh and model.stage != "autoencoder" and not config.start.model:
            before = "autoencoder" if model.stage == "diffusion" else "diffusion"
            raise TrainError(f'model.stage "{model.stage}" starts from a run of stage "{before}"; give start.model')
        if len(config.data.paths) > 1:
            raise TrainError(f"data.path: a motion model reads one dataset, found {len(config.data.paths)}")
        data = read.description(config.data.path)
        expected, stored = (model.width, model.height, model.terms), (data.width, data.height, data.terms)
        if expected != stored:
            raise TrainError(
                f"{config.data.path}: clips of {stored[0]} x {stored[1]} pixels and {stored[2]} terms; the model is "
                f"configured for {expected[0]} x {expected[1]} and {expected[2]}: set model.width, height and terms"
            )
        folder = pathlib.Path(config.data.path)
        if not fresh:
            folder = pathlib.Path(config.workdir)
        elif config.start.model:
            folder = checkpoint.find(config.start.model)[0]
        read.description(folder)
        return cls(config, read_regular(folder / MOTION_FILE))

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: MotionModel(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        """The parameters of the stage before; the denoiser's first run scales latents to a standard deviation of 1."""
        if not self.config.start.model:
            return None
        start = start_lib.from_model(self.config, shapes)
        if self.config.model.stage != "diffusion" or "latent_scale" not in start.params:
            return start
        scale = jnp.full((1,), self._latent_scale(start.params["vae"]), jnp.float32)
        scale = jax.device_put(scale, shapes["latent_scale"].sharding)
        return start._replace(params={**start.params, "latent_scale": scale})

    def _latent_scale(self, vae: Params) -> float:
        """One over the standard deviation of the latents of some training clips."""
        graphdef, _ = functional.abstract(
            lambda: AutoencoderKL(self.config.model.vae, dtype=jnp.dtype(self.config.model.compute_dtype))
        )
        encode = jax.jit(lambda params, slices: functional.merge(graphdef, params).encode(slices).mean)
        source, sums = read.open_clips(self.config.data.path, self.config.data.train_split), []
        for number in range(min(_MEASURED, len(source))):
            normalised = spectrum_lib.normalise(jnp.asarray(source[number].volume.channels), self.scales)
            mean = encode(vae, normalised)
            sums.append((float(mean.mean()), float(jnp.square(mean).mean())))
        mean, square = np.mean(sums, 0)
        return float(1 / np.sqrt(max(square - mean**2, 1e-12)))

    def saved_files(self) -> Mapping[str, SavedFile]:
        return {MOTION_FILE: SavedFile(self.description, "the scales of the frequencies")}

    def train_loader(self) -> Loader:
        data = self.config.data
        processes = jax.process_index(), jax.process_count()
        return loader_lib.TrainLoader(data.path, data.train_split, data.batch_size, self.config.train.seed, *processes)

    def normalizers(self, batch: MotionBatch) -> jax.Array:
        return jnp.maximum(batch.example_mask.sum(), 1).astype(jnp.float32)

    def loss(
        self,
        model: nnx.Module,
        batch: MotionBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        keys = jax.random.split(key, batch.image.shape[0])
        mean = lambda values: jnp.where(batch.example_mask, values, 0.0).sum() / normalizers  # noqa: E731
        if self.config.model.stage == "autoencoder":
            parts = losses.autoencoder(model, batch, self.scales, keys)
            return Loss(mean(parts.total), {name: mean(getattr(parts, name)) for name in self.loss_parts})
        abar = jnp.asarray(alphas_cumprod(self.config.model), jnp.float32)
        return Loss(mean(losses.denoising(model, batch, self.scales, abar, keys)), {})

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MotionEvaluator:
        return MotionEvaluator(self.config, self.metric_names(), self.repeatable, graphdef, mesh)

    def repeatable(self, model: nnx.Module, batch: MotionBatch) -> jax.Array:
        """The metrics of each clip, float32 [B,n]; its frequency, time and noise follow from its position alone."""
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(batch.index.astype(jnp.uint32))
        config = self.config.model
        if config.stage == "autoencoder":
            parts = losses.autoencoder(model, batch, self.scales, keys)
            return jnp.stack([parts.total, *parts], -1)
        # The golden ratio spreads any number of clips evenly over the timesteps.
        spread = (batch.index.astype(jnp.float32) * 0.6180339887) % 1.0
        last = config.num_train_timesteps - 1
        timesteps = jnp.clip((spread * config.num_train_timesteps).astype(jnp.int32), 0, last)
        abar = jnp.asarray(alphas_cumprod(config), jnp.float32)
        return losses.denoising(model, batch, self.scales, abar, keys, timesteps)[:, None]

    def metric_names(self) -> Sequence[str]:
        return ["loss/total", *(f"loss/{part}" for part in self.loss_parts)]


@dataclasses.dataclass(frozen=True)
class MotionEvaluation:
    """Metrics on a split: ``loss/total``, and the autoencoder's parts."""

    metrics: dict[str, float]
    count: int  # examples, over all processes


class MotionEvaluator:
    """Mean losses on the evaluation split."""

    def __init__(
        self,
        config: Config,
        names: Sequence[str],
        values: Callable[[nnx.Module, MotionBatch], jax.Array],
        graphdef: nnx.GraphDef,
        mesh: jax.sharding.Mesh,
    ):
        """Args: the run's config, names of the metrics, and their values per example, float32 [B,n]."""
        self._config, self._names, self._mesh = config, names, mesh
        self._step = jax.jit(lambda params, batch: values(functional.merge(graphdef, params), batch))

    def evaluate(self, params: Any, *, thorough: bool = False) -> MotionEvaluation:
        """The means over all clips. Raises NotFinite, naming the clip."""
        config, sums, count = self._config, np.zeros(len(self._names)), 0
        batches = loader_lib.eval_batches(
            config.data.path,
            config.data.eval_split,
            sharding.rounded_up(config.data.eval_batch_size, self._mesh),
            jax.process_index(),
            jax.process_count(),
            config.train.eval_examples,
        )
        for batch in batches:
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            rows = np.flatnonzero(batch.example_mask)
            bad = rows[~np.isfinite(values[rows]).all(-1)]
            if len(bad):
                raise NotFinite(f"the loss of clip {int(batch.index[bad[0]])} of the evaluated split is not finite")
            sums, count = sums + values[rows].astype(np.float64).sum(0), count + len(rows)
        sums, count = jax.tree.map(np.asarray, multihost.total((sums, count)))
        means = (sums / max(int(count), 1)).tolist()
        return MotionEvaluation(dict(zip(self._names, means)), int(count))

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The loss."""
        return ", ".join(f"{name.split('/')[1]} {metrics[name]:.4f}" for name in self._names)
