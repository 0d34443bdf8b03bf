"""A published pipeline that stays as it is, and tasks that train something of saliency beside it.

The pipeline is that of `start.model`, or of the run itself where it goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from rahf import config as config_lib
from rahf.config import Config, StableDiffusionConfig
from rahf.core import licenses
from rahf.core.errors import CheckpointError, ConfigError, TrainError
from rahf.core.tree import Params, count
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.networks.stable_diffusion import StableDiffusion, is_inpainting
from rahf.diffusion.pipeline_inputs import tokens
from rahf.text import ClipTokenizer, load_tokenizer
from rahf.text.vocabulary import too_many_pieces
from rahf.training import start as start_lib
from rahf.training.run_lock import begun
from rahf.training.saved_model import SavedModel
from rahf.training.task import SavedFile, Task

Batch = TypeVar("Batch")


class FrozenPipelineTask(Task[Batch]):
    """Trains parts beside a pipeline that gets no gradient; the family's config has a field `pipeline`.

    Attributes:
      trainable: patterns of the parameters that are trained.
      tokenizer: the pipeline's vocabulary.
    """

    trainable: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config, tokenizer: ClipTokenizer):
        """Raises ConfigError: other parameters to be trained, or adapters."""
        super().__init__(config)
        if config.optimizer.trainable != self.trainable or config.optimizer.lora.rank:
            raise ConfigError(
                f"optimizer.trainable: expected {self.trainable} and no LoRA, as the pipeline is locked; found "
                f"{config.optimizer.trainable}, rank {config.optimizer.lora.rank}"
            )
        self.tokenizer = tokenizer
        self._tokenizers = [tokenizer.with_special(number) for number in config.model.pipeline.pad_token_ids]

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Prompts → int32 [B,L] for each text tower."""
        pipeline = self.config.model.pipeline
        return tokens(prompts, self._tokenizers, pipeline.text_encoder.positions, pipeline.pad_token_ids)

    def base_params(self) -> tuple[Params, dict[str, Any]]:
        """The pipeline's parameters on the host, and what the record of a start says of them."""
        saved = published(self.config)
        params = jax.device_get(saved.params(lambda: StableDiffusion(self.config.model.pipeline)))
        record = {
            "name": self.config.start.model,
            "license": license_of(saved),
            "licenses": licenses.model_licenses(saved.run),
            "parameters": count(params),
        }
        return params, record

    def saved_files(self) -> Mapping[str, SavedFile]:
        source = f"the pipeline's vocabulary {self.tokenizer.source}"
        return {"tokenizer.model": SavedFile(self.tokenizer.model, source)}


def completed(config: Config, trainable: tuple[str, ...]) -> tuple[Config, ClipTokenizer]:
    """A run's config with the pipeline, in the compute dtype of the config, and what is trained; and the vocabulary.

    Raises:
      TrainError: no `start.model`, a pipeline of inpainting, or more than one data set.
      CheckpointError: no model there, or one of another family.
    """
    start_lib.check(config)
    if len(config.data.paths) > 1:
        raise TrainError(f"data.path: {config.model.family} reads one dataset, found {len(config.data.paths)}")
    pipeline, tokenizer = _pipeline_of(config)
    pipeline = dataclasses.replace(pipeline, compute_dtype=config.model.pipeline.compute_dtype)
    model, optimizer = dataclasses.replace(config.model, pipeline=pipeline), config.optimizer
    if not optimizer.trainable:
        optimizer = dataclasses.replace(optimizer, trainable=trainable)
    return dataclasses.replace(config, model=model, optimizer=optimizer), tokenizer


def _pipeline_of(config: Config) -> tuple[StableDiffusionConfig, ClipTokenizer]:
    run = pathlib.Path(config.workdir)
    model = config_lib.read_saved(run / "config.json").model if begun(run) else None
    if isinstance(model, type(config.model)):
        return model.pipeline, load_tokenizer(run / "tokenizer.model")
    saved = published(config)
    if is_inpainting(saved.config.model):
        raise TrainError(f"start.model {config.start.model}: a pipeline of inpainting; expected text to picture")
    return saved.config.model, tokenizer_of(saved, saved.config.model)


def published(config: Config) -> SavedModel:
    """The model directory of `start.model`. Raises as `completed`."""
    if not config.start.model:
        raise TrainError("start.model: expected the model directory of a Stable Diffusion pipeline")
    saved = saved_lib.find(config.start.model)
    if not isinstance(saved.config.model, StableDiffusionConfig):
        raise CheckpointError(
            f"start.model {config.start.model}: a model of the family {saved.config.model.family!r}, expected "
            "'stable-diffusion', of `rahf import stable-diffusion`"
        )
    return saved


def license_of(saved: SavedModel) -> str:
    """Licenses of the weights that a model began with."""
    return "; ".join(sorted(set(licenses.model_licenses(saved.run).values()))) or "trained here"


def tokenizer_of(saved: SavedModel, pipeline: StableDiffusionConfig) -> ClipTokenizer:
    """The vocabulary beside a saved pipeline, or a run that holds one."""
    return saved.tokenizer(lambda one: too_many_pieces(one, pipeline.text_encoder.vocab_size, "text_encoder"))
