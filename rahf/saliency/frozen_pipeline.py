"""The published pipeline beside which something of saliency is trained: found by `start.model`, or by a run's own."""

from __future__ import annotations

import pathlib

from rahf import config as config_lib
from rahf.config import Config, FamilyConfig, StableDiffusionConfig
from rahf.core.errors import CheckpointError, TrainError
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.networks.stable_diffusion import is_inpainting
from rahf.text import ClipTokenizer, load_tokenizer
from rahf.text.vocabulary import too_many_pieces
from rahf.training.run_lock import begun
from rahf.training.saved_model import SavedModel


def pipeline_of(config: Config, family: type[FamilyConfig]) -> tuple[StableDiffusionConfig, ClipTokenizer]:
    """Config and vocabulary of the pipeline: of the run itself where it goes on, else of `start.model`.

    Args:
      config: of the run.
      family: of its model, which has a field `pipeline`.

    Raises:
      TrainError: no `start.model`, or a pipeline of inpainting.
      CheckpointError: no model there, or one of another family.
    """
    run = pathlib.Path(config.workdir)
    model = config_lib.read_saved(run / "config.json").model if begun(run) else None
    if isinstance(model, family):
        return model.pipeline, load_tokenizer(run / "tokenizer.model")
    saved = published(config)
    if is_inpainting(saved.config.model):
        raise TrainError(f"start.model {config.start.model}: a pipeline of inpainting; expected text to picture")
    return saved.config.model, tokenizer_of(saved, saved.config.model)


def published(config: Config) -> SavedModel:
    """The model directory of `start.model`. Raises as `pipeline_of`."""
    if not config.start.model:
        raise TrainError("start.model: expected the model directory of a Stable Diffusion pipeline")
    saved = saved_lib.find(config.start.model)
    if not isinstance(saved.config.model, StableDiffusionConfig):
        raise CheckpointError(
            f"start.model {config.start.model}: a model of the family {saved.config.model.family!r}, expected "
            "'stable-diffusion', of `rahf import stable-diffusion`"
        )
    return saved


def tokenizer_of(saved: SavedModel, pipeline: StableDiffusionConfig) -> ClipTokenizer:
    """The vocabulary beside a saved pipeline, or a run that holds one."""
    return saved.tokenizer(lambda one: too_many_pieces(one, pipeline.text_encoder.vocab_size, "text_encoder"))
