"""The motion family as a `Task`: one of three stages, each on the parameters of the one before."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from data_pipelines.video.prepare import MOTION_FILE
from rahf.config import Config
from rahf.config.motion import MotionConfig
from rahf.core.errors import TrainError
from rahf.core.files import read_regular
from rahf.core.tree import Params
from rahf.diffusion import schedules
from rahf.diffusion.networks.autoencoder import AutoencoderKL
from rahf.motion import losses
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.clip_task import ClipTask, checked
from rahf.motion.network import MotionModel, check
from rahf.nn import functional
from rahf.training import checkpoint
from rahf.training import start as start_lib
from rahf.training.run_lock import begun
from rahf.training.task import Loss, SavedFile, Start

#: The part of the network that a stage trains.
TRAINED = {"autoencoder": "vae", "diffusion": "unet", "frequency": "frequency"}
_MEASURED = 16  # clips from which the scale of the latents is taken


def alphas_cumprod(config: MotionConfig) -> np.ndarray:
    """``abar`` of each timestep, float64 [T]."""
    return schedules.scaled_linear(config.num_train_timesteps, config.beta_start, config.beta_end)


class MotionTask(ClipTask):
    """Trains one stage; `optimizer.trainable` is the part that the stage trains unless the config names another."""

    def __init__(self, config: Config, description: bytes):
        """Args: the config, and the content of `motion.json` with the scales of the frequencies."""
        check(config.model)
        if not config.optimizer.trainable:
            trainable = (TRAINED[config.model.stage],)
            config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, trainable=trainable))
        super().__init__(config)
        self.description = description
        self.terms = config.model.terms
        self.scales = np.asarray(json.loads(description)["scales"], np.float32)[: self.terms]
        self.loss_parts = ("l1", "gradient", "kl") if config.model.stage == "autoencoder" else ()

    @classmethod
    def from_config(cls, config: Config) -> MotionTask:
        """The task of a run. Scales of a fresh run are those of its start, else of its data.

        Raises:
          TrainError, DatasetError: data of another size, or a stage without the one before.
        """
        data, model = checked(config, "a motion model"), config.model
        fresh = not begun(pathlib.Path(config.workdir))
        if fresh and model.stage != "autoencoder" and not config.start.model:
            before = "autoencoder" if model.stage == "diffusion" else "diffusion"
            raise TrainError(f'model.stage "{model.stage}" starts from a run of stage "{before}"; give start.model')
        if (model.width, model.height) != (data.width, data.height) or model.terms > data.terms:
            raise TrainError(
                f"{config.data.path}: clips of {data.width} x {data.height} pixels and {data.terms} terms; the model "
                f"is configured for {model.width} x {model.height} and {model.terms}: set model.width and height to "
                "the data's and model.terms to as many or fewer"
            )
        folder = pathlib.Path(config.data.path)
        if not fresh:
            folder = pathlib.Path(config.workdir)
        elif config.start.model:
            folder = checkpoint.find(config.start.model, "a run directory of the family motion")[0]
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
            channels = jnp.asarray(source[number].volume.channels[: self.terms])
            normalised = spectrum_lib.normalise(channels, self.scales, self.config.model.normalisation)
            mean = encode(vae, normalised)
            sums.append((float(mean.mean()), float(jnp.square(mean).mean())))
        mean, square = np.mean(sums, 0)
        return float(1 / np.sqrt(max(square - mean**2, 1e-12)))

    def saved_files(self) -> Mapping[str, SavedFile]:
        return {MOTION_FILE: SavedFile(self.description, "the scales of the frequencies")}

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

    def repeatable(self, model: nnx.Module, batch: MotionBatch) -> jax.Array:
        """As of `ClipTask`: a clip's frequency, time and noise follow from its position alone."""
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
